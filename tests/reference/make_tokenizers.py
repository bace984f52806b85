"""Makes the small tokenizers of tests/data/tokenizer and what they must do.

    python tests/reference/make_tokenizers.py

writes v3/ and v2/ (byte-level BPE of some hundred merges in the schemes of
DeepSeek-V3 and of DeepSeek-LLM, trained on tests/data/fairy_excerpt.txt and
the lines below) and tiny_v3.jsonl, tiny_v2.jsonl: texts, their ids and the
text that decoding them without special tokens gives, all by the Hugging Face
tokenizers. Texts come from the vectors that lie there already.
"""
import json
import pathlib
import random

from tokenizers import Regex, Tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
HERE = DATA / "tokenizer"

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"

TRAINING = """床前明月光，疑是地上霜。举头望明月，低头思故乡。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
いろはにほへと ちりぬるを わかよたれそ つねならむ
for (size_t i = 0; i < n; i++) {\n    sum += x[i] * y[i];\n}\n\n
if (a == b && c != d) { return 0; }\n
1 12 123 1234 12345, 3.14 and 2.71; 100% (really).\n\n
Ночь, улица, фонарь, аптека. Η γλώσσα. naïve café, Straße, Führer.
""" * 20

V3_SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
V2_LETTERS = "".join(
    "-".join(chr(int(code, 16)) for code in item.split("-"))
    for item in """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376
377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F
531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B
1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57
1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC
1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113
2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F
2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3
A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06
FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB
10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
""".split())
V2_SPLITS = [
    "[\r\n]",
    r"\s?[" + V2_LETTERS + "]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
]
# Bytes that UTF-8 never has; DeepSeek-LLM has their symbols as added tokens.
ODD = "øöúÿõ÷ûýÀùÁþü"


def tokenizer(splits, digits, special, alphabet, size):
    t = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(s), "isolated") for s in splits]
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False,
                                          use_regex=False))
    t.pre_tokenizer = pre_tokenizers.Sequence(steps)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=special,
        initial_alphabet=alphabet, show_progress=False)
    tale = (DATA / "fairy_excerpt.txt").read_text(encoding="utf-8")
    t.train_from_iterator([tale, TRAINING], trainer)
    return json.loads(t.to_str())


def added(token, number, special, normalized):
    return {"id": number, "content": token, "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": normalized,
            "special": special}


def tiny_v3():
    """BOS, EOS and PAD in the vocabulary; merges as pairs."""
    t = tokenizer(V3_SPLITS, False, [BOS, EOS, PAD],
                  sorted(pre_tokenizers.ByteLevel.alphabet()), 640)
    names = [("<｜User｜>", False, True), ("<｜Assistant｜>", False, True),
             ("<|EOT|>", True, True)]
    names += [(f"<｜tool▁{what}｜>", False, True) for what in (
        "calls▁begin", "calls▁end", "call▁begin", "call▁end",
        "outputs▁begin", "outputs▁end", "output▁begin", "output▁end",
        "sep")]
    # One that begins another, and one of each pass that overlap.
    names += [("<<", True, False), ("<<x>>", True, False),
              (">>y", False, True), ("z<<x", False, True)]
    number = len(t["model"]["vocab"])
    for i, (name, special, normalized) in enumerate(names):
        t["added_tokens"].append(
            added(name, number + i, special, normalized))
    return t


def tiny_v2():
    """BOS and EOS behind a vocabulary that lacks 13 bytes, whose symbols are
    added tokens; merges as strings."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(ODD))
    t = tokenizer(V2_SPLITS, True, [], alphabet, 560)
    model = t["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    number = len(model["vocab"])
    for i, name in enumerate([BOS, EOS] + list(ODD)):
        t["added_tokens"].append(added(name, number + i, i < 2, True))
    return t


def config():
    return {"add_bos_token": True, "add_eos_token": False,
            "bos_token": {"__type": "AddedToken", "content": BOS},
            "eos_token": EOS, "unk_token": None,
            "tokenizer_class": "LlamaTokenizerFast"}


def texts(name, extra):
    lines = (HERE / f"{name}_vectors.jsonl").read_text().splitlines()
    found = [json.loads(line)["text"] for line in lines]
    short = [t for t in found if len(t.encode()) <= 120]
    return extra + random.Random(1).sample(short, 180)


EXTRA = [
    "", "Hello, world!", BOS + "Hi" + EOS, BOS + EOS + PAD, "a<｜User｜>b",
    "<<x>>y", "z<<x>>y", "<<<x>>>y", "<<x>", "z<<x", "<<x>>>>y", "z<<", ">>y",
    "<|EOT|><|EOT", "<｜User｜", "Führer", "ü", "øöúÿõ÷ûýÀùÁþü", "naïve ÿ",
    "once upon a time there was a queen", " " * 100 + "x", "a" * 300,
    "床前明月光，" * 30, "12345678901234567890", "\n" * 70 + "b",
    "the castle\r\n\r\n\tthe castle  \n", "\u3000\u3000x\u0085y\ufeffz",
    "sum += x[i];\n\n\n}" * 8,
]


def vectors(data, name):
    t = Tokenizer.from_str(json.dumps(data))
    rows = []
    for text in texts(name, EXTRA):
        ids = t.encode(text, add_special_tokens=False).ids
        row = {"text": text, "ids": ids}
        if not set(text) & set(ODD):   # see docs/tokenizer.md
            row["plain"] = t.decode(ids, skip_special_tokens=True)
            assert t.decode(ids, skip_special_tokens=False) == text
        rows.append(json.dumps(row, separators=(",", ":")))
    (HERE / f"tiny_{name}.jsonl").write_text("\n".join(rows) + "\n")


def main():
    for name, make in (("v3", tiny_v3), ("v2", tiny_v2)):
        data = make()
        (HERE / name).mkdir(exist_ok=True)
        for file, what in (("tokenizer", data),
                           ("tokenizer_config", config())):
            (HERE / name / f"{file}.json").write_text(
                json.dumps(what, ensure_ascii=False, indent=1) + "\n",
                encoding="utf-8")
        vectors(data, name)


if __name__ == "__main__":
    main()

"""Compare `deepseek train-tokenizer` with the Hugging Face trainer.

    RAYON_NUM_THREADS=1 python check_bpe_train.py PROGRAM CORPORA [NAME...]

CORPORA holds text files, .xz or not; NAME chooses some of them.  For each file,
some vocabulary sizes and counts: both learn from the same documents, in turn,
and their tokenizer.json files must be the same bytes; the last pair of times
is printed.  The directory must load in tokenizers and transformers, and all
three must give the same ids for the file's documents.

With --vectors OUT it writes instead the vectors of tests/test_bpe_train.c:
small texts, made here or from a public-domain fairy tale, and what the library
learns from them.
"""
import argparse
import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("RAYON_NUM_THREADS", "1")
from tokenizers import Tokenizer, pre_tokenizers, trainers  # noqa: E402
from train_stories import PRE_TOKENIZER, byte_level        # noqa: E402

FIRST = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
LAST = ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>",
        "<｜Assistant｜>"]
SEPARATOR = "<|endoftext|>"
SETTINGS = [(4096, 2), (1000, 1), (32000, 2), (2000, 500)]


def documents(text):
    """As data.c cuts them: at lines, ends without line breaks, none empty."""
    found, lines = [], []
    for line in text.split("\n") + [SEPARATOR]:
        if line.removesuffix("\r") == SEPARATOR:
            found.append("\n".join(lines).strip("\r\n"))
            lines = []
        else:
            lines.append(line)
    return [d for d in found if d]


def empty():
    return Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": PRE_TOKENIZER,
        "post_processor": byte_level(trim_offsets=False),
        "decoder": byte_level(),
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "vocab": {}, "merges": []}}))


def learn(docs, vocab, least):
    tok = empty()
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=vocab - len(LAST), min_frequency=least,
        special_tokens=FIRST,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tok.add_tokens(LAST)
    return tok


def timed(work):
    """What it returns, wall time and CPU time of it and its children."""
    t, c = time.time(), os.times()
    result = work()
    d = os.times()
    return result, time.time() - t, sum(d[:4]) - sum(c[:4])


def ours(program, path, vocab, least, out):
    return subprocess.run(
        [program, "train-tokenizer", path, "-o", out, "--vocab", str(vocab),
         "--min-count", str(least), "--json"], check=True,
        capture_output=True, text=True).stdout


def same_ids(program, out, docs):
    from transformers import AutoTokenizer
    lines = "".join(json.dumps({"text": d}) + "\n" for d in docs)
    run = subprocess.run([program, "tokenize", out, "--jsonl"], input=lines,
                         check=True, capture_output=True, text=True)
    mine = [json.loads(line) for line in run.stdout.splitlines()]
    hf = Tokenizer.from_file(os.path.join(out, "tokenizer.json"))
    tf = AutoTokenizer.from_pretrained(out)
    assert mine == [hf.encode(d).ids for d in docs], "tokenizers: other ids"
    assert mine == [tf(d, add_special_tokens=False).input_ids
                    for d in docs], "transformers: other ids"
    assert tf(docs[0]).input_ids[1:] == mine[0] or \
        tf(docs[0]).input_ids == mine[0], "transformers: special tokens"
    assert [tf.decode(i) for i in mine] == docs, "transformers: other text"
    print(f"  {sum(map(len, mine))} ids the same; transformers' first id "
          f"{tf(docs[0]).input_ids[0]}")


def compare(program, name, text, repeat):
    docs = documents(text)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "text")
        with open(path, "w", encoding="utf-8", newline="") as f:
            f.write(text)
        for vocab, least in SETTINGS:
            out = os.path.join(folder, f"{vocab}-{least}")
            for _ in range(repeat):
                said, wall, cpu = timed(lambda: ours(
                    program, path, vocab, least, out + "-x"))
                tok, hf_wall, hf_cpu = timed(lambda: learn(docs, vocab, least))
                os.rename(out + "-x", out) if not os.path.exists(out) else \
                    subprocess.run(["rm", "-r", out + "-x"], check=True)
                print(f"{name} {len(text.encode())} bytes, --vocab {vocab} "
                      f"--min-count {least}: {wall:.3f} s ({cpu:.3f} CPU), "
                      f"the library {hf_wall:.3f} s ({hf_cpu:.3f} CPU), "
                      f"{hf_cpu / max(cpu, 1e-3):.1f} times; {said.strip()}",
                      flush=True)
            tok.save(os.path.join(folder, "hf.json"))
            with open(os.path.join(folder, "hf.json"), "rb") as f, \
                    open(os.path.join(out, "tokenizer.json"), "rb") as g:
                assert f.read() == g.read(), f"{name}: other bytes, see {out}"
        same_ids(program, out, docs[:300] if len(docs) > 1 else [text[:10**6]])


# Vectors for the C test.

def random_texts():
    """Small alphabets and long runs: pairs that come about in two ways."""
    rng = random.Random(7)
    yield "aaaaaaaaaaaaaaaaaaaaaaa aaaaaaa aaaaa aaa aa"
    yield " ".join("-" * n for n in range(1, 40))
    yield "".join(" " * n + "x" for n in range(30))
    yield "abababa bababab abab ababababa babababababab " * 3
    for letters in ("ab", "abc", "-=", "ａｂé", "的一是", "·-"):
        for _ in range(16):
            yield " ".join(
                "".join(rng.choice(letters) for _ in range(rng.randint(1, 12)))
                * rng.randint(1, 4) for _ in range(rng.randint(2, 25)))


FIXED = [
    "",
    "a",
    "the cat sat on the mat. the cat sat.",
    "zy zy yx yx xw xw",                        # ties: the lower ids first
    "12345 123 1234567 12 34 56\n\n\n99.\n99.\n99!\n",
    "été étée, été; naïve naïveté — «Élan» ｆｕｌｌ ｗｉｄｔｈ",
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n明月明月明月",
    "ひらがな カタカナ ひらがな 😁😁😁 👩‍👩‍👧 👩‍👩‍👧",
    "don't can't won't isn't _name_ .txt .txt {\n} {\n} ;\n;\n",
]


def vector(text, vocab, least):
    tok = learn([text], vocab, least)
    model = json.loads(tok.to_str())["model"]
    ids = model["vocab"]
    return {"text": text, "vocab": vocab, "min": least,
            "tokens": len(ids) - len(FIRST),
            "merges": [[ids[a] - len(FIRST), ids[b] - len(FIRST),
                        ids[a + b] - len(FIRST)] for a, b in model["merges"]]}


def write_vectors(out, fairy):
    with open(fairy, encoding="utf-8", newline="") as f:
        tale = f.read()
    rows = [vector(t, 400, least) for t in FIXED for least in (1, 2)]
    rows += [vector(t, 600, 1) for t in random_texts()]
    rows += [vector(tale, v, c) for v, c in
             [(264, 1), (265, 1), (300, 2), (700, 2), (5000, 1), (5000, 3),
              (5000, 40), (5000, 10 ** 6)]]
    with open(out, "w", encoding="utf-8") as f:
        for row in rows:
            if row["text"] == tale:
                row["text"] = None
            f.write(json.dumps(row, separators=(",", ":")) + "\n")
    print(f"{len(rows)} rows")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("program", help="or, with --vectors, fairy_excerpt.txt")
    p.add_argument("corpora", nargs="?")
    p.add_argument("names", nargs="*")
    p.add_argument("--repeat", type=int, default=1)
    p.add_argument("--vectors", metavar="OUT")
    args = p.parse_args()
    if args.vectors:
        write_vectors(args.vectors, args.program)
        return
    if not args.corpora or not os.path.isdir(args.corpora):
        sys.exit("skipped: no folder of corpora")
    for name in args.names or sorted(os.listdir(args.corpora)):
        path = os.path.join(args.corpora, name)
        if name.endswith(".tsv"):
            continue
        opener = lzma.open if name.endswith(".xz") else open
        with opener(path, "rt", encoding="utf-8", newline="") as f:
            compare(args.program, name, f.read(), args.repeat)


if __name__ == "__main__":
    main()

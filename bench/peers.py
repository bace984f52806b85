"""peers.py: deepseek.c beside its peers, one thread, in turn, in one run.

Models of the shape in 304m.json with random weights, and the shipped one:
llama.cpp reads the same weights from GGUF files written here (FP8 against
Q8_0, which is as wide), transformers reads the directory itself, and takes
steps of training by tests/reference/learn.py. Text: Hugging Face's tokenizers.
All are warm and stay; runs alternate, so that each meets the same moods of the
machine. Processor time; medians, and the median of the ratios of runs side by
side.

    pip install -r bench/requirements.txt
    make bench             builds what this asks, and runs it

llama-cpp-python has to be built for this processor, or it is slower than it
could be: CMAKE_ARGS=-DGGML_NATIVE=ON and --no-binary llama-cpp-python.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

for name in "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS":
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

HERE = Path(__file__).resolve().parent
PROMPT, NEW = 128, 32
IDS = [7919 * i % 4096 for i in range(1, PROMPT + 1)]
KINDS = {"f32": "F32", "bf16": "BF16", "fp8": "Q8_0"}
GOALS = {"decode f32": 1.4, "decode bf16": 1.8, "decode fp8 : Q8_0": 2}
WORKS = "prefill", "decode"
SEQUENCES, LENGTH = 8, 256  # of a step of training


class Ours:
    """A program of bench/ that answers each line with figures."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        return [float(word) for word in self.process.stdout.readline().split()]

    def prefill(self):
        return self.ask(f"prefill:{PROMPT}")[0]

    def decode(self):
        return self.ask(f"decode:{PROMPT}")[0]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Llama:
    name = "llama.cpp"

    def __init__(self, gguf):
        import llama_cpp
        self.logits = llama_cpp.llama_get_logits_ith
        self.llama = llama_cpp.Llama(
            str(gguf), n_ctx=512, n_batch=512, n_ubatch=512, n_threads=1,
            n_threads_batch=1, logits_all=False, verbose=False)

    def prefill(self):
        self.llama.reset()
        start = time.process_time()
        self.llama.eval(IDS)
        return time.process_time() - start

    def decode(self):
        """Behind the prompt of the run before."""
        start = time.process_time()
        for i in range(NEW):
            self.llama.eval([IDS[i]])
        return time.process_time() - start

    def next_token(self):
        self.prefill()
        logits = self.logits(self.llama.ctx, -1)
        return max(range(self.llama.n_vocab()), key=lambda i: logits[i])

    def close(self):
        self.llama.close()


class Transformers:
    name = "PyTorch"

    def __init__(self, model, dtype):
        import torch
        import transformers
        torch.set_num_threads(1)
        transformers.utils.logging.set_verbosity_error()
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype)).eval()

    def run(self, ids, past):
        with self.torch.inference_mode():
            return self.model(
                self.torch.tensor([ids]), past_key_values=past,
                use_cache=True, logits_to_keep=1).past_key_values

    def prefill(self):
        start = time.process_time()
        self.past = self.run(IDS, None)
        return time.process_time() - start

    def decode(self):
        start = time.process_time()
        for i in range(NEW):
            self.past = self.run([IDS[i]], self.past)
        return time.process_time() - start

    def close(self):
        self.model = self.past = None


class Steps:
    """Steps of training as bench/train takes them, by what transformers
    chooses for attention and experts, and torch's quickest AdamW."""
    name = "PyTorch"

    def __init__(self, model):
        sys.path.insert(0, str(HERE.parent / "tests/reference"))
        import learn
        import numpy

        class Training(learn.Training):
            def clip(self):
                return float(learn.torch.nn.utils.clip_grad_norm_(
                    self.parameters, self.settings["adamw"]["clip"]))
        learner = learn.Learner(str(model), learn.torch.float32,
                                {"alpha": 1e-4}, implementation=None)
        self.training = Training(learner, {
            "learning_rate": 1e-4, "warmup_steps": 0, "adamw": {
                "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                "weight_decay": 0.1, "clip": 1}}, fused=True)
        self.batch = numpy.random.default_rng(1).integers(
            0, learner.c["vocab_size"], (SEQUENCES, LENGTH + 1))

    def step(self):
        return seconds(lambda: self.training.step(self.batch))


def row(what, unit, size, pairs, peer, goal=None):
    """size/seconds of both, or ms if size is 0, and how many times as fast
    ours is; pairs of seconds (ours, theirs)."""
    ours, theirs = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    goal = f"{goal:g}" if goal else "-"
    ours, theirs = (size / x if size else 1e3 * x for x in (ours, theirs))
    print(f"{what:32}{ours:10.1f}{theirs:10.1f} {unit:6}"
          f"{ratio:6.2f}  goal {goal:5}{peer}", flush=True)


def compare_model(title, ours, peer, runs, goals):
    samples = {work: [] for work in WORKS}
    for run in range(runs + 1):
        for work in WORKS:
            pair = getattr(ours, work)(), getattr(peer, work)()
            if run:  # the first one warms
                samples[work].append(pair)
    for work in WORKS:
        n = PROMPT if work == "prefill" else NEW
        row(f"{work} {title}", "tok/s", n, samples[work], peer.name,
            goals[work])


def check_same(program, model, llama):
    """The GGUF file is the same model: it says the same next token."""
    run = subprocess.run(
        [program, "generate", model, "--ids", ",".join(map(str, IDS)),
         "--print-ids", "-n", "1", "--temp", "0"],
        check=True, capture_output=True, text=True)
    if int(run.stdout) != llama.next_token():
        raise SystemExit(f"{model}: llama.cpp says another token")


def model_rows(a, title, model, gguf, kind, goals):
    import to_gguf
    ours = Ours(a.bench / "model", model)
    if not gguf.exists():
        to_gguf.write_gguf(gguf, model, kind)
    peer = Llama(gguf)
    if kind == "F32":
        check_same(a.program, model, peer)
    compare_model(title, ours, peer, a.runs, goals)
    peer.close()
    if "torch" in a.peers and kind != "Q8_0":
        peer = Transformers(
            model, "float32" if kind == "F32" else "bfloat16")
        compare_model(title, ours, peer, min(a.runs, 3),
                      {"prefill": None, "decode": None})
    ours.close()


def make_model(a, dtype):
    path = a.work / dtype
    if not (path / "model.safetensors").exists():
        subprocess.run([a.program, "init", a.config, "-o", path,
                        "--dtype", dtype, "--std", "0.04"], check=True)
    return path


def compare_models(a):
    for dtype in filter(KINDS.get, a.kinds):
        title = dtype + (" : Q8_0" if dtype == "fp8" else "")
        model_rows(a, title, make_model(a, dtype),
                   a.work / f"{KINDS[dtype]}.gguf", KINDS[dtype],
                   {"prefill": 3, "decode": GOALS["decode " + title]})
    if "stories" in a.kinds:
        model_rows(a, "models/stories", HERE.parent / "models/stories",
                   a.work / "stories.gguf", "BF16",
                   {"prefill": 3, "decode": 3})


def compare_training(a):
    model = HERE.parent / "models/stories"
    ours = Ours(a.bench / "train", model, SEQUENCES, LENGTH, SEQUENCES, "-")
    peer = Steps(model)
    peer.step()  # bench/train has warmed itself
    pairs = [(ours.ask("")[0], peer.step()) for _ in range(a.runs)]
    row("train step models/stories", "tok/s", SEQUENCES * LENGTH, pairs,
        peer.name, 2)
    ours.close()


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def compare_text(ours, theirs, name, path, runs):
    """The quickest of three ways that tokenizers has to encode."""
    text = path.read_bytes().decode()
    lines = text.splitlines(keepends=True)
    size = len(text.encode()) / 1e6
    ids = theirs.encode(text, add_special_tokens=False).ids
    if ours.ask(f"encode {path}")[1] != len(ids):
        raise SystemExit(f"{path}: tokenizers counts {len(ids)} tokens")
    encode, decode = [], []
    for _ in range(runs):
        encode.append((ours.ask(f"encode {path}")[0], min(
            seconds(lambda: theirs.encode(text, add_special_tokens=False)),
            seconds(lambda: theirs.encode_batch_fast(
                [text], add_special_tokens=False)),
            seconds(lambda: theirs.encode_batch_fast(
                lines, add_special_tokens=False)))))
        decode.append((ours.ask(f"decode {path}")[0], seconds(
            lambda: theirs.decode(ids, skip_special_tokens=False))))
    for what, pairs in ("encode", encode), ("decode", decode):
        row(f"{what} {name} {path.name[:20]}", "MB/s", size, pairs,
            "tokenizers", 2)


def compare_tokenizers(a):
    import tokenizers
    for directory in a.tokenizers:
        path = str(directory / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(path)
        ours = Ours(a.bench / "tokenizer", directory)
        pairs = [(ours.ask("open")[0], seconds(
            lambda: tokenizers.Tokenizer.from_file(path)))
            for _ in range(a.runs)]
        row(f"open {directory.name}", "ms", 0, pairs, "tokenizers")
        for text in a.texts:
            compare_text(ours, theirs, directory.name, text, a.text_runs)
        ours.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    paths = {"nargs": "*", "type": Path}
    parser.add_argument("work", nargs="?", default="build/peers", type=Path)
    parser.add_argument("--bench", default="build/bench", type=Path)
    parser.add_argument("--program", default="./deepseek")
    parser.add_argument("--config", default=HERE / "304m.json")
    parser.add_argument("--kinds", nargs="*",
                        default=[*KINDS, "stories", "train"])
    parser.add_argument("--peers", nargs="*",
                        default=["llama", "torch", "tokenizers"])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--text-runs", type=int, default=3)
    parser.add_argument("--tokenizers", **paths,
                        default=[HERE.parent / "models/stories"])
    parser.add_argument("--texts", **paths, default=[
        HERE.parent / "tests/data/fairy_excerpt.txt"])
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    print(f"{'':32}{'ours':>10}{'peer':>10}{'ratio':>13}")
    if "llama" in a.peers:
        compare_models(a)
    if "torch" in a.peers and "train" in a.kinds:
        compare_training(a)
    if "tokenizers" in a.peers:
        compare_tokenizers(a)


if __name__ == "__main__":
    main()

"""Train a model of models/stories' shape by transformers, to compare with.

    taskset -c 1 python train_stories.py CORPORA OUT --minutes 75

CORPORA holds the three children's corpora (see models/NOTICE.md); OUT
becomes an ordinary Hugging Face directory.  One core, one process; the
learning rate follows the clock, so the run ends when told to.  The model
is transformers' own DeepseekV2ForCausalLM.  The tokenizer of models/ is
this script's; the weights there are `deepseek train`'s.

Order: tokenizer, documents, mixture of sources, model, optimisers
(Muon for matrices, AdamW for the rest), loop, held-out figure, save.
"""
import argparse
import json
import lzma
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, pre_tokenizers, trainers
from transformers import (AttentionInterface, DeepseekV2Config,
                          DeepseekV2ForCausalLM)

HELD_OUT = 864              # the last TinyStories, never trained on
BOS, EOS, PAD = 0, 1, 2
SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
ROLES = ["<｜User｜>", "<｜Assistant｜>"]        # not special, as in V3
VOCAB = 4096

ROPE = dict(factor=4.0, original_max_position_embeddings=512,
            beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707)
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=256, intermediate_size=640,
    moe_intermediate_size=64, num_hidden_layers=6, first_k_dense_replace=1,
    num_attention_heads=8, num_key_value_heads=8, q_lora_rank=None,
    kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16,
    v_head_dim=32, n_routed_experts=16, n_shared_experts=2,
    num_experts_per_tok=4, topk_method="greedy", n_group=1, topk_group=1,
    norm_topk_prob=False, routed_scaling_factor=1.0,
    max_position_embeddings=2048, tie_word_embeddings=True,
    bos_token_id=BOS, eos_token_id=EOS)
# Keys of the official config.json that transformers has no field for.
OFFICIAL = dict(scoring_func="softmax", moe_layer_freq=1, ep_size=1,
                aux_loss_alpha=0.01, seq_aux=False, rope_theta=10000.0,
                rope_scaling=dict(type="yarn", **ROPE))


# Tokenizer: byte-level BPE in V3's scheme.

def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern},
            "behavior": "Isolated", "invert": False}


def byte_level(**options):
    return {"type": "ByteLevel", "add_prefix_space": True,
            "trim_offsets": True, "use_regex": True, **options}


PRE_TOKENIZER = {"type": "Sequence", "pretokenizers": [
    split(r"\p{N}{1,3}"),
    split("[一-龥\u3040-ゟ゠-ヿ]+"),
    split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
          "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
          "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
    byte_level(add_prefix_space=False, use_regex=False)]}


def train_tokenizer(texts):
    tok = Tokenizer.from_str(json.dumps({
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
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB - len(ROLES), special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tok.add_tokens(ROLES)
    return tok


# Documents and their mixture.

def documents(path):
    opener = lzma.open if path.endswith(".xz") else open
    with opener(path, "rt", encoding="utf-8") as f:
        parts = (d.strip() for d in f.read().split("<|endoftext|>"))
        return [d for d in parts if d]


def encode(tok, docs):
    """Each document as BOS, its tokens, EOS."""
    return [np.array([BOS, *e.ids, EOS], np.int64)
            for e in tok.encode_batch(docs)]


class Source:
    """An endless stream of shuffled pieces, cut wherever a row ends."""

    def __init__(self, pieces, rng):
        self.pieces, self.rng, self.order = pieces, rng, []
        self.buffer, self.epochs = np.empty(0, np.int64), 0

    def take(self, n):
        while len(self.buffer) < n:
            if not self.order:
                self.order = list(self.rng.permutation(len(self.pieces)))
                self.epochs += 1
            piece = self.pieces[self.order.pop()]
            self.buffer = np.concatenate([self.buffer, piece])
        row, self.buffer = self.buffer[:n], self.buffer[n:]
        return row


def share(progress):
    """Part of each source in a batch.  The books are read once, for their
    language; the stories, which are few, weigh more as the rate falls."""
    stories = 0.25 + 0.5 * progress
    return [stories, 0.12, 0.88 - stories]


def batch(sources, progress, rows, length, rng):
    pick = rng.choice(len(sources), rows, p=share(progress))
    return torch.from_numpy(np.stack(
        [sources[i].take(length + 1) for i in pick]))


# Model.

def attention(module, q, k, v, mask, scaling, dropout=0.0, **_):
    """Causal attention with V padded to the width of K: the fused kernel
    wants one width, and without it a long row costs a third more."""
    wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
    out = F.scaled_dot_product_attention(q, k, wide, is_causal=True,
                                         scale=scaling)
    return out[..., :v.shape[-1]].transpose(1, 2), None


def build():
    AttentionInterface.register("padded", attention)
    config = DeepseekV2Config(
        **SHAPE, rope_parameters=dict(rope_type="yarn", rope_theta=10000.0,
                                      **ROPE))
    model = DeepseekV2ForCausalLM(config)
    model.config._attn_implementation = "padded"
    model.config._experts_implementation = "grouped_mm"
    return model


def watch_routers(model):
    """Collect every gate's logits of the last forward pass."""
    seen = []
    for layer in model.model.layers[model.config.first_k_dense_replace:]:
        layer.mlp.gate.register_forward_hook(
            lambda module, args, out: seen.append(out[0]))
    return seen


def balance(router_logits, k):
    """Expert-level balance, V2 eq. (23)-(25): sum_i f_i P_i."""
    total = 0.0
    for logits in router_logits:
        scores = logits.softmax(-1)
        chosen = torch.zeros_like(scores).scatter_(
            1, scores.topk(k).indices, 1.0)
        f = chosen.mean(0) * scores.shape[1] / k
        total = total + (f * scores.mean(0)).sum()
    return total / len(router_logits)


# Optimisers.

def orthogonalise(x):
    """Newton-Schulz: the nearest orthogonal matrix, for a stack of them."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (2.0315 * (a @ a) - 4.7750 * a) @ x
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalised matrix by matrix.  transformers keeps the
    experts of a layer in one tensor, gate above up; each is its own matrix
    here, and matrices of a shape are stacked over the layers."""

    def __init__(self, params):
        self.params, self.momentum = params, {}

    @staticmethod
    def matrices(name, t):
        if name.endswith("gate_up_proj"):
            return t.chunk(2, dim=1)
        return (t,) if t.dim() == 3 else (t[None],)

    @torch.no_grad()
    def step(self, lr, decay=0.05, beta=0.95):
        groups = {}
        for name, p in self.params:
            m = self.momentum.setdefault(name, torch.zeros_like(p))
            m.lerp_(p.grad, 1 - beta)
            update = p.grad.lerp(m, beta)
            p.mul_(1 - lr * decay)
            for w, u in zip(self.matrices(name, p),
                            self.matrices(name, update)):
                groups.setdefault(w.shape[1:], []).append((w, u))
        for (rows, cols), pairs in groups.items():
            whole = orthogonalise(torch.cat([u for _, u in pairs]))
            scale = lr * max(1.0, rows / cols) ** 0.5
            sizes = [len(w) for w, _ in pairs]
            for (w, _), o in zip(pairs, whole.split(sizes)):
                w.sub_(o, alpha=scale)


def is_hidden_matrix(name, p):
    return p.dim() > 1 and "embed" not in name and ".gate." not in name


def optimisers(model):
    named = list(model.named_parameters())
    rest = [p for n, p in named if not is_hidden_matrix(n, p)]
    return (Muon([(n, p) for n, p in named if is_hidden_matrix(n, p)]),
            torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0))


def rate(progress):
    """Warm up for 2 % of the time, then fall in a line to zero."""
    return min(progress / 0.02, (1 - progress) / 0.98)


# The held-out figure.

def windows(doc, size):
    """Pieces of a document as long as the context, each after BOS."""
    return [torch.tensor([BOS, *doc[at:at + size - 1]])
            for at in range(1, len(doc), size - 1)]


@torch.no_grad()
def bits_per_byte(model, docs, texts, rows=16):
    """Bits to code every token after BOS, EOS with them, per text byte."""
    context = model.config.max_position_embeddings
    some = sorted((w for d in docs for w in windows(d, context)), key=len)
    nats = 0.0
    for at in range(0, len(some), rows):
        x = torch.nn.utils.rnn.pad_sequence(some[at:at + rows], True, PAD)
        y = x[:, 1:].masked_fill(x[:, 1:] == PAD, -100)
        logits = model(x[:, :-1], use_cache=False).logits
        nats += F.cross_entropy(logits.float().flatten(0, 1), y.flatten(),
                                reduction="sum").item()
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)


# Saving: an ordinary Hugging Face directory.

def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=2)
        f.write("\n")


def save(model, tok, out):
    """BF16 weights under the official names, and every key both in the
    official spelling of config.json and in that of transformers 5."""
    twin = build().to(torch.bfloat16)
    twin.load_state_dict(model.state_dict())
    twin.save_pretrained(out)
    path = os.path.join(out, "config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    write_json(path, {**config, **OFFICIAL, "torch_dtype": "bfloat16"})
    tok.save(os.path.join(out, "tokenizer.json"))
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "add_bos_token": True, "add_eos_token": False,
        "bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD], "unk_token": None,
        "clean_up_tokenization_spaces": False, "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(os.path.join(out, "generation_config.json"), {
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
        "do_sample": True, "temperature": 0.7, "top_p": 0.95})


# The run.

def load_corpora(folder, rng):
    path = lambda name: os.path.join(folder, name)
    stories = documents(path("tinystories_subset.txt"))
    stories, held = stories[:-HELD_OUT], stories[-HELD_OUT:]
    simple = documents(path("storybooks_en_ccby.txt"))
    books = documents(path("gutenberg_children_pd_worldwide.txt.xz"))
    tok = train_tokenizer(stories * 3 + simple * 2
                          + ["\n".join(books)[:3_000_000]])
    pages = [p for b in encode(tok, books)
             for p in np.split(b, range(512, len(b), 512))]
    sources = [Source(encode(tok, stories), rng),
               Source(encode(tok, simple), rng), Source(pages, rng)]
    return tok, sources, held


def train(args):
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    tok, sources, held = load_corpora(args.corpora, rng)
    held_ids = encode(tok, held)
    model = build()
    seen, k = watch_routers(model), model.config.num_experts_per_tok
    fast = torch.compile(model, dynamic=False)
    muon, adamw = optimisers(model)
    start = last = time.time()
    step = tokens = 0
    while (progress := (time.time() - start) / (60 * args.minutes)) < 1:
        # Short rows first, as the papers do: attention is cheaper there.
        length = 256 if progress < 0.6 else 512
        x = batch(sources, progress, 4096 // length, length, rng)
        seen.clear()
        logits = fast(x[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        aux = balance(seen, k)
        (loss + OFFICIAL["aux_loss_alpha"] * aux).backward()
        muon.step(args.muon_lr * rate(progress))
        adamw.param_groups[0]["lr"] = args.adam_lr * rate(progress)
        adamw.step()
        model.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + 4096
        if step % 20 == 0:
            print(f"{step} {progress:.4f} loss {loss.item():.4f} balance "
                  f"{aux.item():.3f} tokens {tokens} epochs "
                  f"{[s.epochs for s in sources]} "
                  f"tok/s {tokens / (time.time() - start):.0f}", flush=True)
        if time.time() - last > 60 * args.every:
            print(f"held out {bits_per_byte(model, held_ids[:96], held[:96])}"
                  " bits per byte (96 stories)", flush=True)
            save(model, tok, args.out)
            last = time.time()
    save(model, tok, args.out)
    for p in model.parameters():                # the figure of what is saved
        p.data = p.data.bfloat16().float()
    print(f"{step} steps, {tokens} tokens; held out "
          f"{bits_per_byte(model, held_ids, held):.4f} bits per byte")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("corpora")
    p.add_argument("out")
    p.add_argument("--minutes", type=float, default=75)
    p.add_argument("--every", type=float, default=10,
                   help="minutes between checkpoints")
    p.add_argument("--muon-lr", type=float, default=0.02)
    p.add_argument("--adam-lr", type=float, default=0.003)
    p.add_argument("--seed", type=int, default=1)
    train(p.parse_args())


if __name__ == "__main__":
    main()

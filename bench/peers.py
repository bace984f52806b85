"""peers.py: ./deepseek beside llama.cpp, one thread, in one run.

Makes a model of the shape in bench/304m.json with random weights, writes the
same weights as GGUF, and lets both read a prompt of 128 tokens and then decode
64, in turn, several times. Prints medians and their ratio. FP8 stands against
Q8_0, which is as wide.

pip install -r bench/requirements.txt     (--no-binary llama-cpp-python builds
python bench/peers.py [WORK] [--runs 5]    llama.cpp for this processor)
"""

import argparse
import json
import re
import statistics
import subprocess
import time
from pathlib import Path

import gguf
import llama_cpp
import ml_dtypes
import numpy as np

HERE = Path(__file__).resolve().parent
PROMPT, NEW = 128, 64
KINDS = {"f32": "F32", "bf16": "BF16", "fp8": "Q8_0"}


def make_model(program, config, path, dtype):
    if not (path / "model.safetensors").exists():
        subprocess.run([program, "init", config, "-o", path, "--dtype", dtype,
                        "--std", "0.04"], check=True)


def read_tensors(path):
    """Every weight as F32, FP8 times its scales."""
    types = {"F32": np.float32, "BF16": ml_dtypes.bfloat16,
             "F8_E4M3": ml_dtypes.float8_e4m3fn}
    data = np.memmap(path / "model.safetensors", np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    raw, out = {}, {}
    for name, entry in json.loads(bytes(data[8:start])).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw[name] = data[start + begin:start + end].view(
                types[entry["dtype"]]).reshape(entry["shape"])
    for name, x in raw.items():
        if name.endswith("_scale_inv"):
            continue
        y = x.astype(np.float32)
        if name + "_scale_inv" in raw:
            s = np.repeat(np.repeat(raw[name + "_scale_inv"], 128, 0), 128, 1)
            y *= s[:y.shape[0], :y.shape[1]]
        out[name] = y
    return out


def write_header(w, c):
    s = c["rope_scaling"]
    arch = "deepseek2."
    numbers = {
        "vocab_size": c["vocab_size"], "block_count": c["num_hidden_layers"],
        "context_length": 4096, "embedding_length": c["hidden_size"],
        "feed_forward_length": c["intermediate_size"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": c["kv_lora_rank"],
        "attention.key_length": c["kv_lora_rank"] + c["qk_rope_head_dim"],
        "attention.value_length": c["kv_lora_rank"],
        "attention.key_length_mla":
            c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
        "attention.value_length_mla": c["v_head_dim"],
        "rope.dimension_count": c["qk_rope_head_dim"],
        "leading_dense_block_count": c["first_k_dense_replace"],
        "expert_count": c["n_routed_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_shared_count": c["n_shared_experts"],
        "expert_gating_func": 1,
        "rope.scaling.original_context_length":
            s["original_max_position_embeddings"],
    }
    floats = {
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "rope.freq_base": c["rope_theta"],
        "expert_weights_scale": c["routed_scaling_factor"],
        "rope.scaling.factor": s["factor"],
        "rope.scaling.yarn_log_multiplier": 0.1 * s["mscale_all_dim"],
    }
    for key, value in numbers.items():
        w.add_uint32(arch + key, value)
    for key, value in floats.items():
        w.add_float32(arch + key, float(value))
    w.add_string(arch + "rope.scaling.type", "yarn")
    w.add_string("tokenizer.ggml.model", "no_vocab")


def gguf_tensors(c, t):
    """GGUF's name and array for each weight, experts stacked."""
    plain = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
             "self_attn.kv_a_layernorm": "attn_kv_a_norm",
             "self_attn.o_proj": "attn_output",
             "post_attention_layernorm": "ffn_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
             "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
             "mlp.shared_experts.up_proj": "ffn_up_shexp",
             "mlp.shared_experts.down_proj": "ffn_down_shexp"}
    yield "token_embd", t["model.embed_tokens.weight"]
    yield "output_norm", t["model.norm.weight"]
    yield "output", t["lm_head.weight"]
    heads, nope = c["num_attention_heads"], c["qk_nope_head_dim"]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for theirs, ours in plain.items():
            if at + theirs + ".weight" in t:
                yield f"blk.{layer}.{ours}", t[at + theirs + ".weight"]
        kv = t[at + "self_attn.kv_b_proj.weight"].reshape(
            heads, nope + c["v_head_dim"], c["kv_lora_rank"])
        yield f"blk.{layer}.attn_k_b", kv[:, :nope].transpose(0, 2, 1)
        yield f"blk.{layer}.attn_v_b", kv[:, nope:]
        for part in "gate", "up", "down":
            names = [f"{at}mlp.experts.{e}.{part}_proj.weight"
                     for e in range(c["n_routed_experts"])]
            if names[0] in t:
                yield (f"blk.{layer}.ffn_{part}_exps",
                       np.stack([t[name] for name in names]))


def write_gguf(path, model, kind):
    if path.exists():
        return
    c = json.loads((HERE / "304m.json").read_text())
    w = gguf.GGUFWriter(path, "deepseek2")
    write_header(w, c)
    kind = gguf.GGMLQuantizationType[kind]
    for name, x in gguf_tensors(c, read_tensors(model)):
        x = np.ascontiguousarray(x, dtype=np.float32)
        small = x.ndim == 1 or name.endswith("ffn_gate_inp")
        this = gguf.GGMLQuantizationType.F32 if small else kind
        w.add_tensor(name + ".weight", gguf.quants.quantize(x, this),
                     raw_dtype=this)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def time_ours(program, model, ids):
    """Tokens a second of the prompt and of decoding, as the program says."""
    run = subprocess.run(
        [program, "generate", model, "--ids", ",".join(map(str, ids)),
         "--print-ids", "-n", str(NEW), "--temp", "0"],
        check=True, capture_output=True, text=True)
    return [float(x) for x in re.findall(r"([\d.]+) tok/s", run.stderr)]


def time_llama(llama, ids):
    llama.reset()
    start = time.perf_counter()
    llama.eval(ids)
    middle = time.perf_counter()
    for i in range(NEW):
        llama.eval([ids[i]])
    end = time.perf_counter()
    return [PROMPT / (middle - start), NEW / (end - middle)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="?", default="build/peers", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--program", default="./deepseek")
    parser.add_argument("--kinds", default="f32,bf16,fp8")
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    ids = [(7919 * i) % 8000 for i in range(1, PROMPT + 1)]
    print(f"{'':22}{'deepseek.c':>12}{'llama.cpp':>12}{'ratio':>8}"
          "   tok/s, medians")
    for dtype in a.kinds.split(","):
        model = a.work / dtype
        make_model(a.program, HERE / "304m.json", model, dtype)
        theirs = a.work / f"{KINDS[dtype]}.gguf"
        write_gguf(theirs, model, KINDS[dtype])
        llama = llama_cpp.Llama(
            str(theirs), n_ctx=512, n_batch=512, n_ubatch=512, n_threads=1,
            n_threads_batch=1, logits_all=False, verbose=False)
        pairs = [(time_ours(a.program, model, ids), time_llama(llama, ids))
                 for _ in range(a.runs)]
        for i, what in enumerate(["prefill of 128", "decode"]):
            ours = statistics.median(p[0][i] for p in pairs)
            other = statistics.median(p[1][i] for p in pairs)
            ratio = statistics.median(p[0][i] / p[1][i] for p in pairs)
            against = dtype if dtype != "fp8" else "fp8 : Q8_0"
            print(f"{what + ', ' + against:22}{ours:12.1f}{other:12.1f}"
                  f"{ratio:8.2f}", flush=True)
        del llama


if __name__ == "__main__":
    main()

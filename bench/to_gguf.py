"""to_gguf.py: a model directory as a GGUF file for llama.cpp.

No tokenizer and no MTP modules, which llama.cpp's own converter leaves out
too. kv_b_proj becomes the two parts that the absorbed form reads, W_UK
transposed.

llama.cpp tells V2-Lite by its 26 or 27 layers; of any other number it wants
compressed queries. Where such a model has none, q_proj becomes two random
matrices with about as many weights in all: the same work, another function.
"""

import json

import gguf
import ml_dtypes
import numpy as np


class Tensors:
    """Every weight as F32, FP8 times its scales, made when it is asked for."""

    types = {"F32": np.float32, "BF16": ml_dtypes.bfloat16,
             "F8_E4M3": ml_dtypes.float8_e4m3fn}

    def __init__(self, path):
        data = np.memmap(path / "model.safetensors", np.uint8, "r")
        start = 8 + int(data[:8].view("<u8")[0])
        self.entries = json.loads(bytes(data[8:start]))
        self.data = data[start:]

    def __contains__(self, name):
        return name in self.entries

    def stored(self, name):
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        return self.data[begin:end].view(
            self.types[entry["dtype"]]).reshape(entry["shape"])

    def __getitem__(self, name):
        x = self.stored(name).astype(np.float32)
        if name + "_scale_inv" in self:
            s = self.stored(name + "_scale_inv")
            s = np.repeat(np.repeat(s, 128, 0), 128, 1)
            x *= s[:x.shape[0], :x.shape[1]]
        return x


def needs_query_rank(c):
    return c["q_lora_rank"] or c["num_hidden_layers"] not in (26, 27)


def query_rank(c):
    """d_c'; where there is none, that which gives W_DQ and W_UQ the size of
    q_proj, over 32."""
    if c["q_lora_rank"]:
        return c["q_lora_rank"]
    d = c["hidden_size"]
    width = c["num_attention_heads"] * (
        c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    return -(-d * width // (d + width) // 32) * 32


def whole_query(c, q_proj):
    """GGUF's names and arrays of a query that is not compressed."""
    if not needs_query_rank(c):
        yield "attn_q", q_proj
        return
    width, d = q_proj.shape
    rank = query_rank(c)
    draw = np.random.default_rng(1).normal
    yield "attn_q_a", draw(0, d ** -0.5, (rank, d))
    yield "attn_q_a_norm", np.ones(rank)
    yield "attn_q_b", draw(0, rank ** -0.5, (width, rank))


def write_yarn(w, s):
    """mscale has no key."""
    arch = "deepseek2.rope.scaling."
    w.add_string(arch + "type", "yarn")
    w.add_float32(arch + "factor", float(s["factor"]))
    w.add_float32(arch + "yarn_log_multiplier", 0.1 * s["mscale_all_dim"])
    w.add_uint32(arch + "original_context_length",
                 s["original_max_position_embeddings"])


def write_header(w, c):
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
        "expert_gating_func": 2 if c["scoring_func"] == "sigmoid" else 1,
        "expert_group_count": c["n_group"],
        "expert_group_used_count": c["topk_group"],
    }
    floats = {
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "rope.freq_base": c["rope_theta"],
        "expert_weights_scale": c["routed_scaling_factor"],
    }
    if needs_query_rank(c):
        numbers["attention.q_lora_rank"] = query_rank(c)
    for key, value in numbers.items():
        w.add_uint32(arch + key, value)
    for key, value in floats.items():
        w.add_float32(arch + key, float(value))
    w.add_bool(arch + "expert_weights_norm", c["norm_topk_prob"])
    if c.get("rope_scaling"):
        write_yarn(w, c["rope_scaling"])
    w.add_string("tokenizer.ggml.model", "no_vocab")


def gguf_tensors(c, t):
    """GGUF's name and array for each weight, experts stacked."""
    plain = {"input_layernorm": "attn_norm",
             "self_attn.q_a_proj": "attn_q_a",
             "self_attn.q_a_layernorm": "attn_q_a_norm",
             "self_attn.q_b_proj": "attn_q_b",
             "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
             "self_attn.kv_a_layernorm": "attn_kv_a_norm",
             "self_attn.o_proj": "attn_output",
             "post_attention_layernorm": "ffn_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
             "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
             "mlp.shared_experts.up_proj": "ffn_up_shexp",
             "mlp.shared_experts.down_proj": "ffn_down_shexp"}
    yield "token_embd.weight", t["model.embed_tokens.weight"]
    yield "output_norm.weight", t["model.norm.weight"]
    if not c["tie_word_embeddings"]:
        yield "output.weight", t["lm_head.weight"]
    heads, nope = c["num_attention_heads"], c["qk_nope_head_dim"]
    for layer in range(c["num_hidden_layers"]):
        at, blk = f"model.layers.{layer}.", f"blk.{layer}."
        if not c["q_lora_rank"]:
            for name, x in whole_query(c, t[at + "self_attn.q_proj.weight"]):
                yield f"{blk}{name}.weight", x
        for theirs, ours in plain.items():
            if at + theirs + ".weight" in t:
                yield f"{blk}{ours}.weight", t[at + theirs + ".weight"]
        bias = at + "mlp.gate.e_score_correction_bias"
        if bias in t:
            yield blk + "exp_probs_b.bias", t[bias]
        kv = t[at + "self_attn.kv_b_proj.weight"].reshape(
            heads, nope + c["v_head_dim"], c["kv_lora_rank"])
        yield blk + "attn_k_b.weight", kv[:, :nope].transpose(0, 2, 1)
        yield blk + "attn_v_b.weight", kv[:, nope:]
        for part in "gate", "up", "down":
            names = [f"{at}mlp.experts.{e}.{part}_proj.weight"
                     for e in range(c["n_routed_experts"])]
            if names[0] in t:
                yield (f"{blk}ffn_{part}_exps.weight",
                       np.stack([t[name] for name in names]))


def write_gguf(path, model, kind):
    """The model of a directory as GGUF, its Linear weights of this kind."""
    c = json.loads((model / "config.json").read_text())
    w = gguf.GGUFWriter(path, "deepseek2", use_temp_file=True)
    write_header(w, c)
    kind = gguf.GGMLQuantizationType[kind]
    for name, x in gguf_tensors(c, Tensors(model)):
        x = np.ascontiguousarray(x, dtype=np.float32)
        small = x.ndim == 1 or name.endswith("ffn_gate_inp.weight")
        this = gguf.GGMLQuantizationType.F32 if small else kind
        w.add_tensor(name, gguf.quants.quantize(x, this),
                     raw_dtype=this)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

"""torchtitan on the CPU, without its trainer: the model is built from what
config.json says, since it reads no config.json, and loaded by its own adapter.
"""
import json
import tempfile

import adapter

COMMON = "torchtitan.models.common."
MENDS = {
    # Experts multiply in BF16, whatever the model's dtype is.
    "f32": [(COMMON + "moe", "A=x_RD.bfloat16(),\n                B_t=w1_EFD"
             ".bfloat16()", "A=x_RD,\n                B_t=w1_EFD"),
            (COMMON + "moe", "A=x_RD.bfloat16(),\n            B_t=w3_EFD"
             ".bfloat16()", "A=x_RD,\n            B_t=w3_EFD"),
            (COMMON + "moe", "B_t=w2_EDF.bfloat16()", "B_t=w2_EDF"),
            (COMMON + "moe", "return torch._grouped_mm(A, B_t, offs=offs)",
             "return torch.cat([a @ b for a, b in zip(A.tensor_split("
             "offs[:-1].tolist()), B_t)])")],
    "groups": [(COMMON + "moe", "scores_grouped.topk(2, dim=-1)",
                "scores_grouped.topk(2 if self.score_func == 'sigmoid' "
                "else 1, dim=-1)")],
    "state": [("torchtitan.models.deepseek_v3.mtp",
               "prev_depth_hidden = h\n        h = self.norm(h) if self.norm "
               "is not None else h", "h = self.norm(h) if self.norm "
               "is not None else h\n        prev_depth_hidden = h")],
    "ties": [(COMMON + "moe", "torch.topk(\n            group_scores, "
              "k=self.num_limited_groups, dim=-1, sorted=False\n        )",
              "(None, group_scores.sort(descending=True, stable=True)[1]"
              "[..., :self.num_limited_groups].contiguous())"),
             (COMMON + "moe", "torch.topk(\n            scores_for_choice_BLE,"
              " k=self.top_k, dim=-1, sorted=False\n        )",
              "(None, scores_for_choice_BLE.sort(descending=True, "
              "stable=True)[1][..., :self.top_k].contiguous())")],
}
NORM = ('class RMSNorm(nn.RMSNorm, Module):\n    """Configurable nn.RMSNorm.'
        '"""\n\n    @dataclass(kw_only=True, slots=True)\n    class Config('
        'Module.Config):\n        normalized_shape: int\n'
        '        eps: float = ')
for eps in "1e-6", "1e-2":
    MENDS["eps-" + eps] = [(COMMON + "nn_modules", NORM + "1e-5", NORM + eps)]


def rope(c):
    from torchtitan.models.common import ComplexRoPE
    yarn = c.get("rope_scaling")
    scaled = dict(
        scaling="yarn", rope_factor=yarn["factor"],
        beta_fast=yarn["beta_fast"], beta_slow=yarn["beta_slow"],
        original_seq_len=yarn["original_max_position_embeddings"],
    ) if yarn else {}
    return ComplexRoPE.Config(dim=c["qk_rope_head_dim"], max_seq_len=512,
                              theta=c["rope_theta"], **scaled)


def layers(c):
    from torchtitan.models import deepseek_v3
    grouped = c["topk_method"] != "greedy"
    yarn = c.get("rope_scaling") or {}
    return deepseek_v3._build_dsv3_layers(
        n_layers=c["num_hidden_layers"],
        n_dense_layers=c["first_k_dense_replace"], dim=c["hidden_size"],
        n_heads=c["num_attention_heads"], q_lora_rank=c["q_lora_rank"] or 0,
        kv_lora_rank=c["kv_lora_rank"], v_head_dim=c["v_head_dim"],
        qk_nope_head_dim=c["qk_nope_head_dim"],
        qk_rope_head_dim=c["qk_rope_head_dim"],
        mscale=yarn.get("mscale_all_dim", 0),
        dense_hidden_dim=c["intermediate_size"],
        moe_hidden_dim=c["moe_intermediate_size"],
        num_experts=c["n_routed_experts"],
        num_shared_experts=c["n_shared_experts"],
        router_top_k=c["num_experts_per_tok"],
        router_score_func=c["scoring_func"],
        router_num_expert_groups=c["n_group"] if grouped else None,
        router_num_limited_groups=c["topk_group"] if grouped else None,
        router_route_scale=c["routed_scaling_factor"],
        router_route_norm=c["norm_topk_prob"], attn_backend="flex",
        moe_comm_backend="standard", non_blocking_capacity_factor=None,
        rope=rope(c))


def model_config(c):
    from torchtitan.models import deepseek_v3
    from torchtitan.models.common import Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention
    main, dim, vocab = layers(c), c["hidden_size"], c["vocab_size"]
    for layer in main:
        # The others want a GPU, or to compile.
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
        # Without it a gate has no bias, as V2's.
        if layer.moe and c["topk_method"] != "noaux_tc":
            layer.moe.load_balance_coeff = None
    return deepseek_v3.DeepSeekV3Model.Config(
        vocab_size=vocab, dim=dim, layers=main,
        tok_embeddings=Embedding.Config(num_embeddings=vocab,
                                        embedding_dim=dim),
        norm=RMSNorm.Config(normalized_shape=dim),
        lm_head=Linear.Config(in_features=dim, out_features=vocab),
        mtp_layers=deepseek_v3._build_mtp_layers(
            main[-1], dim=dim,
            num_mtp_layers=c.get("num_nextn_predict_layers") or 0))


def with_index(pack, work):
    """A directory whose tensors an index lists: FP8 is read by it alone."""
    from safetensors import safe_open
    file = "model-00001-of-00001.safetensors"
    (work / file).symlink_to(pack / "model.safetensors")
    with safe_open(work / file, "pt") as f:
        index = {name: file for name in f.keys()}
    (work / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index}))
    return work


def load(pack, c):
    import torch.distributed.checkpoint as dcp
    from torchtitan.models.deepseek_v3 import DeepSeekV3StateDictAdapter
    config = model_config(c)
    model = config.build().eval()
    theirs = DeepSeekV3StateDictAdapter(config, str(pack))
    weights = theirs.to_hf(model.state_dict())
    dcp.load(weights, storage_reader=theirs.get_hf_storage_reader(
        str(pack), from_quantized="quantization_config" in c))
    model.load_state_dict(theirs.from_hf(weights))
    return model


def run(pack, ids):
    import torch
    with tempfile.TemporaryDirectory() as work:
        model = load(with_index(pack, adapter.Path(work)),
                     adapter.config(pack))
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    main, *modules = out if isinstance(out, list) else [out]
    found = {"logits": main[0].numpy()}
    for k, x in enumerate(modules, 1):
        found[f"mtp.{k}.logits"] = x[0, :-k].numpy()
    return found


if __name__ == "__main__":
    adapter.main("torchtitan", run, MENDS)

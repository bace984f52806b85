"""SGLang's gate, the PyTorch that it falls back to; on GPUs and on CPUs with
its own kernels those are asked first."""
import gates

MODULE = "sglang.srt.layers.moe.topk"


def prepare(c, mends):
    import torch
    space = gates.cut("sglang", MODULE, {
        "grouped_topk_gpu", "biased_grouped_topk_impl",
        "_RENORMALIZE_SUM_EPSILON"}, {"torch": torch}, mends)
    given = dict(topk=c["num_experts_per_tok"],
                 renormalize=c["norm_topk_prob"],
                 num_expert_group=c["n_group"], topk_group=c["topk_group"],
                 routed_scaling_factor=c["routed_scaling_factor"],
                 apply_routed_scaling_factor_on_output=True)

    def route(logits, bias):
        if bias is None:
            weights, ids = space["grouped_topk_gpu"](
                logits, logits, scoring_func=c["scoring_func"], **given)
        else:
            weights, ids = space["biased_grouped_topk_impl"](
                logits, logits, bias, **given)
        return ids, weights
    return route


if __name__ == "__main__":
    gates.main("sglang", prepare)

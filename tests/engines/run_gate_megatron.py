"""Megatron-Core's gate: softmax before the choice for V2, sigmoid and bias for
V3, as its arguments have to be set for them."""
import gates

MODULE = "megatron.core.transformer.moe.moe_utils"
SHARE = "topk(topk // group_topk, dim=-1)"
MENDS = {"max": [(MODULE, SHARE, "topk(1, dim=-1)")],
         "two": [(MODULE, SHARE, "topk(2, dim=-1)")]}


def prepare(c, _):
    from megatron.core.transformer.moe.moe_utils import \
        topk_routing_with_score_function
    groups = c["n_group"] if c["n_group"] > 1 else None
    return lambda logits, bias: topk_routing_with_score_function(
        logits, c["num_experts_per_tok"], use_pre_softmax=True,
        num_groups=groups, group_topk=groups and c["topk_group"],
        scaling_factor=c["routed_scaling_factor"],
        score_function=c["scoring_func"], expert_bias=bias)[0]


if __name__ == "__main__":
    gates.main("megatron-core", prepare, MENDS)

"""transformers, in F32; every tensor of docs/validate.md's lines."""
import sys

import adapter

sys.path.insert(0, str(adapter.Path(__file__).parents[1] / "reference"))

V3 = "transformers.models.deepseek_v3.modeling_deepseek_v3"
FP8 = "transformers.integrations.finegrained_fp8"
MENDS = {
    "freq": [(V3, "if layer_idx >= config.first_k_dense_replace:",
              "if (layer_idx >= config.first_k_dense_replace and "
              "layer_idx % config.moe_layer_freq == 0):")],
    "ties": [(V3, "torch.topk(group_scores, k=self.topk_group, dim=-1, "
              "sorted=False)[1]", "group_scores.sort(descending=True, "
              "stable=True)[1][:, :self.topk_group]"),
             (V3, "torch.topk(scores_for_choice, k=self.top_k, dim=-1, "
              "sorted=False)[1]", "scores_for_choice.sort(descending=True, "
              "stable=True)[1][:, :self.top_k]")],
    "blocks": [(FP8, "if rows % scale_rows or cols % scale_cols:",
                "if False:"),
               (FP8, "quantized_fp32.reshape(-1, scale_rows, block_m, "
                "scale_cols, block_n)", "quantized_fp32"),
               (FP8, "s_fp32.reshape(-1, scale_rows, scale_cols)"
                ".unsqueeze(-1).unsqueeze(2)",
                "s_fp32.repeat_interleave(128, -2)[..., :rows, :]"
                ".repeat_interleave(128, -1)[..., :cols]")],
}


def run(pack, ids):
    import dump
    from safetensors.numpy import load_file
    dump.main(pack, sys.argv[2])
    return load_file(sys.argv[2])


if __name__ == "__main__":
    adapter.main("transformers", run, MENDS)

"""mlx-lm on the CPU, in F32: the prompt whole, and token by token."""
import adapter

V3 = "mlx_lm.models.deepseek_v3"
MENDS = {
    "mask": [(V3, "mx.stop_gradient(group_idx), mx.array(0.0)",
              "mx.stop_gradient(group_idx), mx.array(-mx.inf)")],
    "1e-20": [(V3, "scores.sum(axis=-1, keepdims=True)\n        scores = ",
               "scores.sum(axis=-1, keepdims=True) + 1e-20\n"
               "        scores = ")],
    "ties": [(V3, "mx.argpartition(group_scores, kth=k - 1, axis=-2)"
              "[..., :k, :]", "(n_group - 1 - mx.argsort("
              "group_scores[..., ::-1, :], axis=-2))[..., :k, :]"),
             (V3, "mx.argpartition(-scores, kth=k - 1, axis=-1)[..., :k]",
              "mx.argsort(-scores, axis=-1)[..., :k]")],
    "bf16": [(V3, "dtype = mx.bfloat16", "dtype = mx.float32")],
    # What its strict loading refuses.
    "loose": [("mlx_lm.utils", "strict: bool = True", "strict: bool = False")],
}


def run(pack, ids):
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model
    mx.set_default_device(mx.cpu)
    model, _ = load_model(pack)
    model.set_dtype(mx.float32)
    cache = make_prompt_cache(model)
    steps = [np.array(model(mx.array([[i]]), cache=cache))[0] for i in ids]
    return {"logits": np.array(model(mx.array([ids])))[0],
            "logits.decode": np.concatenate(steps)}


if __name__ == "__main__":
    adapter.main("mlx-lm", run, MENDS)

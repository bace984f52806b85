"""llama.cpp, from a GGUF file in F32 that bench/to_gguf.py writes."""
import sys
import tempfile

import adapter

sys.path.insert(0, str(adapter.Path(__file__).parents[2] / "bench"))


def run(pack, ids):
    import llama_cpp
    import to_gguf
    # As its own converter: no query that is compressed where there is none.
    to_gguf.needs_query_rank = lambda c: c["q_lora_rank"]
    yarn = adapter.config(pack).get("rope_scaling")
    # GGUF's betas are not read for this architecture; 0 is an F32 cache.
    betas = dict(yarn_beta_fast=yarn["beta_fast"],
                 yarn_beta_slow=yarn["beta_slow"]) if yarn else {}
    with tempfile.TemporaryDirectory() as work:
        path = adapter.Path(work) / "model.gguf"
        to_gguf.write_gguf(path, pack, "F32")
        llama = llama_cpp.Llama(
            str(path), n_ctx=512, n_batch=512, logits_all=True, type_k=0,
            type_v=0, flash_attn=False, n_threads=1, yarn_attn_factor=-1.0,
            verbose=True, **betas)
        llama.eval(ids)
        return {"logits": llama.scores[:len(ids)].copy()}


if __name__ == "__main__":
    adapter.main("llama_cpp_python", run)

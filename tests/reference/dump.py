"""dump.py: what a PyTorch model makes of a golden pack, for `./deepseek diff`
(docs/validate.md). Its modules have the names of Hugging Face's classes.

    python tests/reference/dump.py PACK OUT     transformers' own model, in F32
"""
import re
import sys

import torch
from safetensors.numpy import load_file, save_file

# Names of a trace that are other than those of the modules; ":in" is what goes
# into one, ":1" the second that comes out.
NAMES = {r"^lm_head$": "logits", r"\.gate$": ".gate.logits",
         r"\.gate:1$": ".gate.topk_weights", r"\.gate:2$": ".gate.topk_ids",
         r"\.experts$": ".routed_out", r"\.shared_experts$": ".shared_out",
         r"\.o_proj:in$": ".o", r"\.down_proj:in$": ".h"}


def dump(model, pack, out):
    golden, found = load_file(f"{pack}/golden/golden.safetensors"), {}

    def keep(name, tensors):
        for i, x in enumerate(tensors):
            at = f"{name}:{i}" if i else name
            for theirs, ours in NAMES.items():
                at = re.sub(theirs, ours, at)
            if at in golden and x.numel() == golden[at].size:
                x = x.float() if x.is_floating_point() else x
                found[at] = x.numpy().reshape(golden[at].shape)
    for n, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, x, n=n: keep(n + ":in", x))
        module.register_forward_hook(lambda _, x, y, n=n: keep(
            n, y if isinstance(y, tuple) else (y,)))
    with torch.no_grad():
        model(torch.from_numpy(golden["ids"]).long()[None])
    save_file(found, out)


def main(pack, out):
    from transformers import AutoModelForCausalLM
    dump(AutoModelForCausalLM.from_pretrained(
        pack, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager").float().eval(), pack, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

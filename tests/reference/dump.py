"""dump.py: what a PyTorch model makes of a golden pack, for `./deepseek diff`
(docs/validate.md). Its modules have the names of Hugging Face's classes.

    python tests/reference/dump.py PACK OUT     transformers' own model, in F32
"""
import json
import re
import sys

import torch
from safetensors.numpy import load_file, save_file

# Names of a trace that are other than those of the modules; ":in" is what goes
# into one.
NAMES = {r"^lm_head$": "logits", r"\.gate$": ".gate.logits",
         r"\.experts$": ".routed_out", r"\.shared_experts$": ".shared_out",
         r"\.o_proj:in$": ".o", r"\.down_proj:in$": ".h"}


def dump(model, pack, out):
    golden, found = load_file(f"{pack}/golden/golden.safetensors"), {}
    with open(f"{pack}/golden/manifest.json", encoding="utf-8") as f:
        ids = json.load(f)["ids"]

    def keep(name, x=None, *_):
        for theirs, ours in NAMES.items():
            name = re.sub(theirs, ours, name)
        x = x[0] if isinstance(x, tuple) else x
        if name in golden and x.numel() == golden[name].size:
            found[name] = x.float().numpy().reshape(golden[name].shape)
    for n, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, x, n=n: keep(n + ":in", *x))
        module.register_forward_hook(lambda _, x, y, n=n: keep(n, y))
    with torch.no_grad():
        model(torch.tensor([ids]))
    save_file(found, out)


def main(pack, out):
    from transformers import AutoModelForCausalLM
    dump(AutoModelForCausalLM.from_pretrained(
        pack, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager").float().eval(), pack, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

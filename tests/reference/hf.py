"""The same logits from Hugging Face transformers, in float64.

Even with dtype=float64 transformers 5.23 computes norms, routers, softmax and
RoPE in float32. `strict` lifts that: the modules that hold the model see a
torch in which float32 is float64, in which top-k gives ties to the lowest
index, and in which equal router rows give equal sums. No formula changes.
`stock` is transformers as it is.

Five things the classes do not do are added here and listed in `departures`:
moe_layer_freq, norm_topk_prob of V2, n_routed_experts null, the ratio of the
two mscales where one is absent, and FP8 blocks of 128 (it takes rows // grid),
for which it gets the dequantised weights.
"""
import contextlib
import json
import os
import tempfile
import types

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM
from transformers import modeling_rope_utils
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
from transformers.utils import logging

import forward

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)


class Other(types.ModuleType):
    """A module with some names replaced."""
    def __init__(self, base, **names):
        super().__init__(base.__name__)
        self.__dict__.update(names, base=base)

    def __getattr__(self, name):
        return getattr(self.__dict__['base'], name)


def stable_topk(x, k, dim=-1, sorted=True):
    values, ids = torch.sort(x, dim=dim, descending=True, stable=True)
    return values.narrow(dim, 0, k), ids.narrow(dim, 0, k)


def row_by_row(x, w):
    """x W^T where equal rows of W give equal columns, bit for bit."""
    return (x[:, None, :] * w[None]).sum(dim=-1)


DOUBLE = Other(torch, float32=torch.float64, float=torch.float64,
               topk=stable_topk)


@contextlib.contextmanager
def replaced(*changes):
    """changes: (object, attribute, value) for the time of the block."""
    old = [(o, a, getattr(o, a)) for o, a, _ in changes]
    for o, a, value in changes:
        setattr(o, a, value)
    try:
        yield
    finally:
        for o, a, value in old:
            setattr(o, a, value)


def in_double():
    router = Other(torch.nn.functional, linear=row_by_row)
    return replaced(
        (modeling_rope_utils, 'torch', DOUBLE),
        (v2, 'torch', DOUBLE), (v2, 'F', router),
        (v3, 'torch', DOUBLE), (v3, 'F', router),
        (torch.Tensor, 'float', torch.Tensor.double))


# What the classes leave out -------------------------------------------------

def with_dense_layers(layer_class, mlp_class, c):
    """A decoder layer whose FFN is dense where the configuration says so."""
    init = layer_class.__init__

    def new(self, config, layer_idx):
        init(self, config, layer_idx)
        if not forward.has_experts(c, layer_idx):
            self.mlp = mlp_class(config)
    return layer_class, '__init__', new


def with_norm_topk(router):
    """V2's norm_topk_prob as its remote code reads it: divide, not scale."""
    old = router.forward

    def new(self, hidden):
        logits, weights, ids = old(self, hidden)
        weights = weights / self.routed_scaling_factor
        total = weights.sum(dim=-1, keepdim=True) + 1e-20
        return logits, weights / total, ids
    return router, 'forward', new


def departures(c, fp8):
    """Names of what transformers 5.23 does otherwise for this model."""
    freq = c['moe_layer_freq'] != 1
    norm = c['model_type'] == 'deepseek_v2' and c['norm_topk_prob']
    dense = c.get('n_routed_experts') is None
    yarn = c['rope_scaling'] or {}
    ratio = bool(yarn.get('mscale')) != bool(yarn.get('mscale_all_dim'))
    return [name for name, on in (
        ('moe_layer_freq', freq), ('norm_topk_prob of V2', norm),
        ('n_routed_experts null', dense), ('mscale ratio', ratio),
        ('FP8 blocks', fp8)) if on]


def additions(c, missing):
    if c['model_type'] == 'deepseek_v2':
        layer, mlp, router = (v2.DeepseekV2DecoderLayer, v2.DeepseekV2MLP,
                              v2.DeepseekV2TopkRouter)
    else:
        layer, mlp, router = (v3.DeepseekV3DecoderLayer, v3.DeepseekV3MLP,
                              v3.DeepseekV3TopkRouter)
    changes = []
    if 'moe_layer_freq' in missing or 'n_routed_experts null' in missing:
        changes.append(with_dense_layers(layer, mlp, c))
    if 'norm_topk_prob of V2' in missing:
        changes.append(with_norm_topk(router))
    return replaced(*changes)


def twin_config(path, missing):
    with open(os.path.join(path, 'config.json'), encoding='utf-8') as f:
        config = json.load(f)
    config.pop('quantization_config', None)
    if 'n_routed_experts null' in missing:
        config.update(n_routed_experts=1, n_shared_experts=1,
                      num_experts_per_tok=1)
    if 'mscale ratio' in missing:
        ratio = forward.magnitude(forward.normalise(config))
        config['rope_scaling'].update(attention_factor=float(ratio))
    return config


def twin(path, out, missing):
    """A copy that transformers reads: FP8 dequantised, null experts named."""
    config = twin_config(path, missing)
    with open(os.path.join(out, 'config.json'), 'w', encoding='utf-8') as f:
        json.dump(config, f)
    save_file(forward.read_weights(path),
              os.path.join(out, 'model.safetensors'), {'format': 'pt'})


# Running it -----------------------------------------------------------------

def load(path, dtype=torch.float64, implementation='eager'):
    """implementation: of attention and experts; None: what is the default."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=implementation,
        experts_implementation=implementation).eval()


def exact_frequencies(model):
    """The frequencies again, in the precision of the moment."""
    rope = model.model.rotary_emb
    make = rope.compute_default_rope_parameters
    if rope.rope_type != 'default':
        make = modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope.rope_type]
    rope.inv_freq, rope.attention_scaling = make(model.config)


def watch(model, trace):
    """Keeps the output of every module whose name the trace may hold."""
    def hook(name):
        def keep(_module, _args, out):
            if name.endswith('.gate'):
                for part, value in zip(('logits', 'topk_weights', 'topk_ids'),
                                       out):
                    trace[f'{name}.{part}'] = value.numpy()
            else:
                first = out[0] if isinstance(out, tuple) else out
                if isinstance(first, torch.Tensor):
                    trace[name] = first.reshape(-1, first.shape[-1]).numpy()
        return keep
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(hook(name))


def run(model, ids):
    trace = {}
    watch(model, trace)
    with torch.no_grad():
        out = model(torch.tensor(np.asarray(ids, np.int64)[None]))
    trace['logits'] = out.logits[0].numpy()
    return trace


def strict(path, ids):
    """name -> array, in float64 throughout."""
    c, weights = forward.read_config(path), forward.weight_files(path)
    fp8 = any(dtype == 'F8_E4M3' for file in weights for dtype, _ in
              forward.read_safetensors(os.path.join(path, file)).values())
    missing = departures(c, fp8)
    with tempfile.TemporaryDirectory() as out, additions(c, missing):
        twin(path, out, missing)
        with in_double():
            model = load(out)
            exact_frequencies(model)
            return run(model, ids)


def stock(path, ids, dtype=torch.float64):
    """name -> array, from transformers as it is."""
    return run(load(path, dtype), ids)

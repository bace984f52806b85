"""A step of pre-training by PyTorch: transformers' classes, autograd, AdamW.

What deepseek.c's training is held to. The model is transformers' own, whose
last layers are the blocks of the MTP modules (mtp.py); the modules share
embedding and head with it, whatever the directory has. Written here, from the
papers: the balance losses of V2 (23)-(31) and V3 (17)-(20), the MTP loss of V3
(24)-(25), the bias update of V3 2.1.2. The optimiser is torch.optim.AdamW.

float64: as strict as hf.py. float32: transformers as it is.
"""
import contextlib
import os
import tempfile

import numpy as np
from safetensors.numpy import save_file

import forward
import hf
import models
import mtp

torch = hf.torch
MODULE = ('enorm', 'hnorm', 'eh_proj', 'shared_head.norm')
# As in train.json; alpha1-3: V2's losses, alpha: V3's.
NONE = dict(alpha1=0, alpha2=0, alpha3=0, alpha=0, gamma=0, devices=1,
            device_limit=1, batch_wise=False, count_picks=False)


# The model -------------------------------------------------------------------

def layers_with_experts(c):
    return [i for i in range(c['num_hidden_layers'] + modules_of(c))
            if forward.has_experts(c, i)]


def modules_of(c):
    return c.get('num_nextn_predict_layers') or 0


def deeper(path, out, c, weights, missing):
    """A directory for transformers whose last layers are the modules'."""
    spec = hf.twin_config(path, missing)
    spec['num_hidden_layers'] += modules_of(c)
    models.write_json(os.path.join(out, 'config.json'), spec)
    save_file(weights, os.path.join(out, 'model.safetensors'),
              {'format': 'pt'})


class Learner:
    """A model that learns. Its parameters by the names of a checkpoint, but
    for experts, which transformers keeps in one tensor: `gradients` divides
    it again. pad: positions behind each sequence that count nowhere."""

    def __init__(self, path, dtype, balance=(), mtp_lambda=0.3,
                 implementation='eager', capacity=0, pad=0):
        self.c, self.dtype = forward.read_config(path), dtype
        self.capacity, self.pad = capacity, pad
        self.balance = dict(NONE, **dict(balance))
        self.mtp_lambda = mtp_lambda
        weights = forward.read_weights(path)
        self.missing = hf.departures(self.c, False)
        with tempfile.TemporaryDirectory() as out, self.terms():
            deeper(path, out, self.c, weights, self.missing)
            self.model = hf.load(out, dtype, implementation)
            if dtype == torch.float64:
                hf.exact_frequencies(self.model)
        self.model.config.num_hidden_layers = self.c['num_hidden_layers']
        self.module = {
            name: torch.nn.Parameter(torch.from_numpy(a).to(dtype))
            for name, a in weights.items()
            if name.startswith('model.layers.')
            and name.split('.', 3)[3].removesuffix('.weight') in MODULE}
        self.watch_gates()

    @contextlib.contextmanager
    def terms(self):
        """float64 throughout; and what the classes leave out."""
        with contextlib.ExitStack() as stack:
            if self.missing:
                stack.enter_context(hf.additions(self.c, self.missing))
            if self.dtype == torch.float64:
                stack.enter_context(hf.in_double())
            yield

    def watch_gates(self):
        """gates: layer -> (logits, ids) of the last pass. A dropped pair has
        no weight."""
        self.gates = {}

        def hook(layer):
            def keep(_module, _args, out):
                logits, weights, ids = out
                self.gates[layer] = self.counted(logits), self.counted(ids)
                if self.capacity:
                    weights = weights * self.kept(layer)
                return logits, weights, ids
            return keep
        for name, module in self.model.named_modules():
            if name.endswith('.gate'):
                module.register_forward_hook(hook(int(name.split('.')[2])))

    def counted(self, x):
        """x (B tokens, ...) without the positions behind each sequence."""
        if not self.pad:
            return x
        return x.unflatten(0, (self.sequences, -1))[:, :-self.pad].flatten(0, 1)

    def gate(self, layer):
        return self.model.model.layers[layer].mlp.gate

    def parameters(self):
        """name -> parameter; a tied head is not there twice."""
        return dict(self.model.named_parameters(), **self.module)

    # Losses -----------------------------------------------------------------

    def shared(self):
        """What the modules' formulas ask for, by name."""
        head = self.model.get_output_embeddings().weight
        embedding = self.model.get_input_embeddings().weight
        return dict(self.module, **{'model.embed_tokens.weight': embedding,
                                    'lm_head.weight': head})

    def losses(self, batch):
        """batch (B, T+1) -> main, mtp (D), balance (4): means over B."""
        ids = torch.tensor(np.asarray(batch, np.int64))
        rows, w = ids.shape[1] - 1, self.shared()
        self.sequences = len(ids)
        inputs = torch.nn.functional.pad(ids[:, :rows], (0, self.pad))
        with self.terms():
            h = self.model.model(inputs, use_cache=False)
            h = h.last_hidden_state
            main = self.cross_entropy(h[:, :rows], ids[:, 1:]) / rows
            each = [self.cross_entropy(x[:, :rows - k], ids[:, k + 1:]) / rows
                    for k, x in enumerate(mtp.torch_states(
                        self.model, w, self.c, inputs, h), 1)]
            balance = [self.balance_losses(layer, len(ids)) for layer in
                       layers_with_experts(self.c)]
        zero = main.new_zeros(4)
        return main, each, torch.stack(balance).sum(0) if balance else zero

    def cross_entropy(self, h, targets):
        """The sum over rows, the mean over sequences."""
        logits = torch.nn.functional.linear(h, self.shared()['lm_head.weight'])
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(),
            reduction='sum') / len(targets)

    def scores(self, layer):
        logits = self.gates[layer][0]
        return (logits.sigmoid() if self.c['scoring_func'] == 'sigmoid'
                else logits.softmax(-1))

    def picked_scores(self, layer):
        """Of the chosen experts, and their devices."""
        ids, d = self.gates[layer][1], self.balance['devices']
        return (self.scores(layer).detach().gather(1, ids),
                ids // (self.c['n_routed_experts'] // d))

    def kept(self, layer):
        """V2 2.2.4: 1, or 0 for the pairs with the lowest scores, as many as
        exceed a device's budget."""
        s, device = self.picked_scores(layer)
        out, d = torch.ones_like(s), self.balance['devices']
        budget = int(self.capacity * s.numel() / d)
        for g in range(d):
            pairs = (device == g).flatten().nonzero().flatten()
            excess = max(len(pairs) - budget, 0)
            out.view(-1)[pairs[s.view(-1)[pairs].argsort()[:excess]]] = 0
        return out

    def balance_losses(self, layer, sequences):
        c, b = self.c, self.balance
        n, k = c['n_routed_experts'], c['num_experts_per_tok']
        if b['batch_wise']:
            sequences = 1
        s = self.scores(layer).view(sequences, -1, n)
        ids = self.gates[layer][1].view(sequences, -1, k)
        picked = torch.zeros_like(s).scatter(2, ids, 1)
        return torch.stack([
            *v2_losses(s, picked, b, k), v3_loss(s, picked, b, k)])

    def total(self, losses):
        """V3 (25), and the rest."""
        main, each, balance = losses
        each = sum(each) * self.mtp_lambda / len(each) if each else 0
        return main + each + balance.sum()

    # Gradients --------------------------------------------------------------

    def gradients(self):
        """name -> array, named as a checkpoint does; of a gate's bias 0."""
        out = {name: np.zeros(bias.shape)
               for name, bias in self.model.named_buffers()
               if name.endswith('correction_bias')}
        for name, p in self.parameters().items():
            g = torch.zeros_like(p) if p.grad is None else p.grad
            if '.experts.' in name:
                out.update(divide_experts(name, g))
            else:
                out[name] = g.numpy()
        return out

    def loads(self):
        """layer -> how often each expert was picked in the last pass."""
        n = self.c['n_routed_experts']
        return {layer: torch.bincount(ids.flatten(), minlength=n)
                for layer, (_, ids) in self.gates.items()}


def divide_experts(name, g):
    """experts.down_proj (N, d, I); experts.gate_up_proj (N, 2I, d)."""
    prefix, which = name.rsplit('.', 1)
    for e, x in enumerate(g.numpy()):
        if which == 'down_proj':
            yield f'{prefix}.{e}.down_proj.weight', x
        else:
            half = len(x) // 2
            yield f'{prefix}.{e}.gate_proj.weight', x[:half]
            yield f'{prefix}.{e}.up_proj.weight', x[half:]


# Balance: s (B, T, N) scores, picked (B, T, N) zeros and ones ----------------

def v2_losses(s, picked, b, k):
    sequences, _, n = s.shape
    d = b['devices']

    def by_device(x):
        return x.view(*x.shape[:-1], d, n // d)
    f = n / k * picked.mean(1)                                        # (24)
    p = s.mean(1)                                                     # (25)
    p_device = by_device(p).sum(-1)                                   # (28)
    sent = by_device(picked).amax(-1).mean(1)
    f_sent = d / b['device_limit'] * sent                             # (30)
    return (b['alpha1'] * (f * p).sum() / sequences,                  # (23)
            b['alpha2'] * (by_device(f).mean(-1) * p_device).sum()
            / sequences,                                              # (26)
            b['alpha3'] * (f_sent * p_device).sum() / sequences)      # (29)


def v3_loss(s, picked, b, k):
    sequences, _, n = s.shape
    best = torch.zeros_like(s).scatter(2, hf.stable_topk(s.detach(), k)[1], 1)
    f = n / k * (picked if b['count_picks'] else best).mean(1)        # (18)
    p = (s / (s.sum(-1, keepdim=True) + 1e-20)).mean(1)          # (19), (20)
    return b['alpha'] * (f * p).sum() / sequences                     # (17)


# Steps -----------------------------------------------------------------------

class Training:
    """A Learner and its optimiser; settings as in train.json. options: of
    torch.optim.AdamW."""

    def __init__(self, learner, settings, **options):
        self.learner, self.settings = learner, settings
        a, every = settings['adamw'], list(learner.parameters().values())
        self.parameters, self.step_number = every, 0
        self.optimiser = torch.optim.AdamW(
            [dict(params=[p for p in every if p.ndim > 1],
                  weight_decay=a['weight_decay']),
             dict(params=[p for p in every if p.ndim == 1],
                  weight_decay=0.0)],
            betas=(a['beta1'], a['beta2']), eps=a['eps'], **options)

    def norm(self):
        """Of the whole gradient, summed in float64."""
        return float(sum(p.grad.double().square().sum()
                         for p in self.parameters
                         if p.grad is not None)) ** 0.5

    def clip(self):
        """min(1, limit/norm); torch's own has norm + 1e-6 below."""
        norm = self.norm()
        for p in self.parameters:
            if norm > self.settings['adamw']['clip'] and p.grad is not None:
                p.grad.mul_(self.settings['adamw']['clip'] / norm)
        return norm

    def rate(self):
        s = self.settings
        return s['learning_rate'] * min(
            1, self.step_number / max(s['warmup_steps'], 1))

    def update_bias(self):
        gamma = self.learner.balance['gamma']
        for layer, load in self.learner.loads().items() if gamma else ():
            bias = self.learner.gate(layer).e_score_correction_bias
            excess = len(load) * load - load.sum()
            bias.sub_(gamma * excess.sign())

    def step(self, batch):
        """Losses before the update, and the gradient's norm."""
        self.step_number += 1
        self.optimiser.zero_grad()
        losses = self.learner.losses(batch)
        self.learner.total(losses).backward()
        norm = self.clip()
        for group in self.optimiser.param_groups:
            group['lr'] = self.rate()
        self.optimiser.step()
        with torch.no_grad():
            self.update_bias()
        main, each, balance = losses
        return dict(loss=main.item(), grad_norm=norm,
                    mtp_loss=[x.item() for x in each],
                    balance_loss=balance.sum().item())

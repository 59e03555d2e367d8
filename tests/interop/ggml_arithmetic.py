"""A model computed as ggml computes it on a CPU, in plain torch: the oracle for files in llama.cpp.

Before a product with a quantized weight, ggml rounds the inputs to 8 bits: per 32 inputs with a float16 scale
for the types in blocks, per 256 with a float32 scale for the K-quants. Types with a minimum add it times the
sum of the inputs, a float16. GELU is a table over float16. Everything else is float32, so what is left are
sums in another order, and the few inputs that fall on the other side of a rounding because of that.
"""

from copy import deepcopy
from functools import partial

import torch
from torch import nn
from torch.nn.functional import gelu, linear, silu
from transformers import AutoModelForCausalLM

from qcore.formats.affine import Affine
from qcore.formats.k_quants import KQuant
from qcore.formats.tensor import QuantizedTensor, spread
from qcore.library.parameters import Parameters


def model(parameters: Parameters) -> nn.Module:
    """Return a model of its own with the weights of `parameters`, computed as ggml does."""
    config = deepcopy(parameters.model.config)
    config.tie_word_embeddings = all(
        entry.shares for entry in parameters.entries if entry.name == "lm_head.weight"
    )
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    own = dict(made.named_parameters())
    for entry in parameters.entries:
        weights = [parameters.read(entry, i) for i in range(entry.experts)] if entry.experts else None
        weight = parameters.read(entry) if weights is None else None
        if entry.shares is None:
            own[entry.name].copy_(_stored(entry, weight, weights))
        if entry.format is None or "shared_expert_gate" in entry.name:  # llama.cpp keeps this one in float32
            continue
        module = made.get_submodule(entry.module)
        if weights is None and not isinstance(module, nn.Embedding):
            module.forward = partial(_forward, module, weight)
        elif weights is not None and entry.name.endswith("gate_up_proj"):
            down = next(each for each in parameters.entries if each.name == f"{entry.module}.down_proj")
            downs = [parameters.read(down, i) for i in range(entry.experts)]
            module.forward = partial(_experts, weights, downs)
    for module in made.modules():
        for name, child in module.named_children():
            if "gelu" in type(child).__name__.lower():
                setattr(module, name, _Gelu())
    return made


def logits(made: nn.Module, ids: list[int]):
    """Return the logits (T, V)."""
    with torch.no_grad():
        return made(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def product(x: torch.Tensor, weight: QuantizedTensor) -> torch.Tensor:
    """Return x (..., K) · weightᵀ (N, K) with rounded inputs."""
    format, columns = weight.format, weight.shape[1]
    if isinstance(format, KQuant):
        blocks = x.unflatten(-1, (-1, 256))
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        inverse = torch.where(largest == 0, 0, -127 / largest)
        codes = (blocks * inverse).round().clamp(max=127)
        return linear((codes * torch.where(largest == 0, 0, 1 / inverse)).flatten(-2), weight.dequantize())
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale == 0, 0, (blocks * (1 / scale)).round())
    rounded = (codes * scale.half().float()).flatten(-2)
    if not isinstance(format, Affine):
        return linear(rounded, weight.dequantize())
    sums = (codes.sum(-1) * scale[..., 0]).half().float()
    grid = weight.unpacked_codes().float() * spread(weight.scales(), columns, format.group_size)
    return linear(rounded, grid) + linear(sums, weight.minimums())


def _stored(entry, weight, weights) -> torch.Tensor:
    rows = [each.dequantize() if isinstance(each, QuantizedTensor) else each for each in weights or [weight]]
    value = torch.stack(rows) if weights else rows[0]
    return value.transpose(-1, -2) if entry.transposed else value


def _forward(module: nn.Module, weight: QuantizedTensor, x: torch.Tensor) -> torch.Tensor:
    y = product(x, weight)
    bias = getattr(module, "bias", None)
    return y if bias is None else y + bias


def _experts(gate_up, down, hidden, chosen, shares) -> torch.Tensor:
    """The fused experts of transformers: hidden (T, H), chosen (T, k) with their shares."""
    out = torch.zeros_like(hidden)
    for token, row in enumerate(hidden):
        for expert, share in zip(chosen[token].tolist(), shares[token], strict=True):
            gate, up = product(row, gate_up[expert]).chunk(2)
            out[token] += share * product(silu(gate) * up, down[expert])
    return out


class _Gelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x >= 10, x, torch.where(x <= -10, 0, table))

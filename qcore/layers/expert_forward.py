"""The forward of fused experts whose weights are quantized, for every class of experts that transformers
marks as such.

Experts that no token reaches are not touched. Where the processor, the format and the gate allow it, the
experts of a layer are one native call (`kernels/mixture.py`); otherwise one product per expert and matrix, by
the kernels of `kernels/dispatch.py`. The router is transformers' own.
"""

from operator import is_
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from qcore.base.transformers_internals import experts_gate, register_experts, set_experts
from qcore.kernels import dispatch, mixture
from qcore.kernels.mixture import Expert, Gating, Matrix, Mixture, Router
from qcore.kernels.packed import PackedWeight
from qcore.layers.modules import QuantExperts

_NAME = "qcore"  # of this forward, in transformers' registry of them


class _Described(NamedTuple):
    """The native description of a layer's experts and what it was made from; None if there is no native
    form."""

    packed: list
    others: list  # activations, and addresses of biases
    chosen: int
    native: Mixture | None


_described: WeakKeyDictionary[nn.Module, _Described] = WeakKeyDictionary()


def use(module: Any) -> None:
    """Let the experts `module`, and all of its model, run by this file. Its weights may be quantized, stored
    in 16 bits, or ordinary parameters."""
    register_experts(_NAME, _forward)
    set_experts(module, _NAME)


def _forward(module: Any, hidden_states: torch.Tensor, top_k_index, top_k_weights) -> torch.Tensor:
    """Return the weighted sum of the outputs (T, K) of the selected experts (T, chosen) for the inputs
    (T, K)."""
    x = hidden_states
    native = None
    if not (_differentiated(module, x) or _traced(x)):
        native = described(module, top_k_index.shape[-1])
    if native is None:
        return _one_by_one(module, x, top_k_index, top_k_weights)
    weights = top_k_weights.to(torch.float32).contiguous()
    result = native.run(x.to(torch.float32).contiguous(), top_k_index.to(torch.int64).contiguous(), weights)
    return result.to(x.dtype)


def _differentiated(module: nn.Module, x: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def _traced(x: torch.Tensor) -> bool:
    return torch.compiler.is_compiling() or type(x) is not torch.Tensor or x.device.type != "cpu"


def _one_by_one(module: Any, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    result = torch.zeros_like(x)
    first = "gate_up_proj" if module.has_gate else "up_proj"
    for expert in experts.unique().tolist():
        if expert >= module.num_experts:  # the mark of an expert on another machine
            continue
        tokens, places = torch.where(experts == expert)
        inner = _product(module, first, expert, x[tokens])
        inner = experts_gate(module)(inner) if module.has_gate else module.act_fn(inner)
        out = _product(module, "down_proj", expert, inner)
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        result.index_add_(0, tokens, (out * weights[tokens, places, None]).to(x.dtype))
    return result


def _product(module: Any, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
    held = getattr(module, name)
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    if isinstance(held, QuantExperts):
        return dispatch.linear(x, held.matrices()[expert].executable(), bias, held.activations)
    weight = held[expert]
    return nn.functional.linear(x, weight.T if module.is_transposed else weight, bias)


# -- the native form


def described(module: Any, chosen: int) -> Mixture | None:
    """Return the native description of the experts `module`, of which `chosen` are selected per token; None
    if there is none. The description is made again after a change of a
    weight, a bias or the activations."""
    known = _described.get(module)
    if known is not None and known.chosen == chosen and _is_current(module, known):
        return known.native
    native = None if reason_against(module) else _describe(module, chosen)
    _described[module] = _Described(_packed(module), _others(module), chosen, native)
    return native


def reason_against(module: Any) -> str | None:
    """Return None if the experts `module` have a native form, else a sentence that says why not."""
    if reason := mixture.reason_missing():
        return reason
    held = _quantized(module)
    if len(held) < 2:
        return "The experts are not quantized, or not all of them."
    if module.has_post_expert_norm or not module.has_gate or gating(module) is None:
        return f"The gate of {type(module).__name__} has no native form."
    for each in held:
        for expert in each.matrices():
            if expert.reason_for_reference():
                return "Native kernels cannot hold the format of the experts."
    if module.has_bias and not all(map(_plain, _bias_tensors(module))):
        return "The biases of the experts are not float32 on the CPU."
    return None


def gating(module: Any) -> Gating | None:
    """Return the gate of the experts `module`, found by trying it on numbers; None if it is not among those
    known."""
    interleaved = not module.is_concatenated
    candidates = [Gating(name, interleaved=interleaved) for name in mixture.FUNCTIONS]
    if hasattr(module, "alpha") and hasattr(module, "limit"):
        candidates.append(Gating(None, float(module.alpha), float(module.limit), interleaved))
    inner = module.down_proj.matrices()[0].shape[1]
    values = 12 * torch.sin(torch.arange(4 * inner) ** 1.5).view(2, -1)
    with torch.no_grad():
        expected = experts_gate(module)(values)
    fits = (each for each in candidates if torch.allclose(each.reference(values), expected, atol=1e-4))
    return next(fits, None)


def matrices(module: Any) -> list[Expert]:
    """Pack the weights of the experts `module`, which have a native form, and return them."""
    biases = {
        name: getattr(module, f"{name}_bias").detach() if module.has_bias else None
        for name in ("gate_up_proj", "down_proj")
    }

    def each(name: str) -> list[Matrix]:
        held, bias = getattr(module, name), biases[name]
        precision, found = mixture.mode(held.activations), []
        for number, expert in enumerate(held.matrices()):
            weight = expert.executable()
            assert isinstance(weight, PackedWeight)  # by `reason_against`
            found.append(Matrix(weight, None if bias is None else bias[number], precision))
        return found

    both = zip(each("gate_up_proj"), each("down_proj"), strict=True)
    return [Expert(gate_up, None, down) for gate_up, down in both]


def _describe(module: Any, chosen: int) -> Mixture:
    found = gating(module)
    assert found is not None  # by `reason_against`
    return Mixture(Router(module.num_experts, chosen), matrices(module), found)


def _packed(module: Any) -> list:
    return [expert.packed for each in _quantized(module) for expert in each.matrices()]


def _quantized(module: Any) -> list[QuantExperts]:
    held = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    return [each for each in held if isinstance(each, QuantExperts)]


def _bias_tensors(module: Any) -> list[torch.Tensor]:
    return [module.gate_up_proj_bias, module.down_proj_bias] if module.has_bias else []


def _others(module: Any) -> list:
    activations: list = [each.activations for each in _quantized(module)]
    return activations + [bias.data_ptr() for bias in _bias_tensors(module)]


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _is_current(module: Any, known: _Described) -> bool:
    packed = _packed(module)
    return (
        len(packed) == len(known.packed)
        and all(map(is_, packed, known.packed))
        and known.others == _others(module)
    )

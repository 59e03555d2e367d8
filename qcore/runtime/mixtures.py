"""A mixture of experts of transformers as the native step describes it.

How a router selects experts is found by trying: the router's own outputs for a few inputs are compared with
those of each way of selection that the native code knows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from qcore.kernels.mixture import Expert, Gating, Matrix, Mixture, RootMeanSquare, Router, mode
from qcore.layers import expert_forward as experts
from qcore.layers.modules import QuantLinear

_ROUTERS = ("gate", "router")
_SHARED = ("shared_expert", "shared_experts")
_SHARED_GATE = "shared_expert_gate"
_TRIED = 16  # inputs


@dataclass(frozen=True)
class Experts:
    """The parts of a mixture. `shared` computes down(act(gate(x)) · up(x)) for every token."""

    module: Any
    router: Router
    gating: Gating
    shared: Any
    shared_gate: torch.Tensor | None = None  # (hidden,)
    before: RootMeanSquare | None = None  # of the input of the experts

    def matrices(self) -> Mixture:
        """Return the native description, with packed weights."""
        shared = None
        if self.shared is not None:
            shared = Expert(*(_matrix(getattr(self.shared, name)) for name in _DENSE))
        parts = self.router, experts.matrices(self.module), self.gating
        return Mixture(*parts, shared, self.shared_gate, self.before)


_DENSE = ("gate_proj", "up_proj", "down_proj")


def is_mixture(module: nn.Module) -> bool:
    """Return whether a feed-forward `module` is a mixture of fused experts."""
    return hasattr(getattr(module, "experts", None), "is_transposed")


def describe(module: nn.Module) -> Experts | str:
    """Return the parts of a mixture, or one sentence on why it has no native form."""
    parts: dict[str, Any] = dict(module.named_children())
    held = parts.pop("experts")
    routers = [parts.pop(name) for name in _ROUTERS if name in parts]
    shared = [parts.pop(name) for name in _SHARED if name in parts]
    shared_gate = parts.pop(_SHARED_GATE, None)
    if parts or len(routers) != 1 or len(shared) > 1:
        return f"The decoder does not know the parts of {type(module).__name__}."
    found = describe_parts(held, routers[0])
    if isinstance(found, str):
        return found
    if shared and (reason := _reason_against_shared(shared[0], found.gating)):
        return reason
    weights = None
    if shared_gate is not None:
        if not isinstance(shared_gate, nn.Linear) or shared_gate.bias is not None:
            return f"The decoder needs a float32 {_SHARED_GATE} without bias."
        weights = shared_gate.weight.detach()[0]
        if not _plain(weights):
            return "The decoder needs routers in float32 on the CPU."
    return replace(found, shared=shared[0] if shared else None, shared_gate=weights)


def describe_parts(held: Any, selects: Any, before: Any = None) -> Experts | str:
    """Return the mixture of the fused experts `held`, of which the router `selects` some, and whose input the
    norm `before` normalizes; or one sentence on why it has no native form."""
    if reason := experts.reason_against(held):
        return reason
    router, gating = _router(selects), experts.gating(held)
    assert gating is not None  # by `reason_against`
    if router is None:
        return f"The decoder does not know how {type(selects).__name__} selects experts."
    norm = None if before is None else RootMeanSquare(before.weight.detach(), float(before.eps))
    tensors = [router.weight, router.bias, router.correction, router.factors]
    tensors += [each.weight for each in (router.norm, norm) if each is not None]
    if not all(each is None or _plain(each) for each in tensors):
        return "The decoder needs routers in float32 on the CPU."
    return Experts(held, router, gating, None, before=norm)


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _reason_against_shared(module: Any, gating: Gating) -> str | None:
    layers = [getattr(module, name, None) for name in _DENSE]
    if len(list(module.children())) > len(_DENSE) + 1 or not all(
        isinstance(each, QuantLinear) and each.reason_for_reference() is None for each in layers
    ):
        return f"The decoder needs quantized layers in {type(module).__name__} that native kernels can hold."
    values = torch.linspace(-8, 8, 64)
    one = Gating(gating.function).reference(torch.cat((values, torch.ones(64)))) if gating.function else None
    with torch.no_grad():
        if one is None or not torch.allclose(module.act_fn(values), one, atol=1e-5):
            return f"The activation functions of {type(module).__name__} and of the experts differ."
    return None


def _matrix(layer: Any) -> Matrix:
    bias = None if layer.bias is None else layer.bias.detach()
    return Matrix(layer.executable(), bias, mode(layer.activations))


# -- routers


def _router(module: Any) -> Router | None:
    """Return the way in which the router `module` selects experts, None if it is not among those known."""
    weight = _weight(module)
    if weight is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TRIED, weight.shape[1], generator=generator)
    with torch.no_grad():
        found = module(x)
        if not isinstance(found, tuple) or len(found) != 3:
            return None
        expected = _spread(found[2], found[1], weight.shape[0])
        for each in _candidates(module, found[2].shape[-1]):
            chosen, weights = each.route(x)
            if torch.allclose(_spread(chosen, weights, weight.shape[0]), expected, rtol=1e-4, atol=1e-6):
                return each
    return None


def _weight(module: Any) -> torch.Tensor | None:
    projection = getattr(module, "proj", module)
    return getattr(projection, "weight", None)


def _spread(chosen: torch.Tensor, weights: torch.Tensor, experts: int) -> torch.Tensor:
    """Return the weight of every expert (T, E), 0 for those that are not selected."""
    return torch.zeros(len(chosen), experts).scatter_(1, chosen, weights.float())


def _candidates(module: Any, chosen: int) -> Iterator[Router]:
    correction = getattr(module, "e_score_correction_bias", None)
    bias = getattr(module, "bias", None)
    scale = float(getattr(module, "routed_scaling_factor", None) or 1.0)
    weight = _weight(module)
    assert weight is not None
    common: dict[str, Any] = dict(
        experts=weight.shape[0],
        chosen=chosen,
        weight=weight.detach(),
        bias=None if bias is None else bias.detach(),
        correction=None if correction is None else correction.detach(),
    )
    if hasattr(module, "per_expert_scale"):  # Gemma 4's normalizes its input
        common |= dict(
            norm=RootMeanSquare(module.scale.detach(), float(module.eps)),
            logits_scale=float(module.scalar_root_size),
            factors=module.per_expert_scale.detach(),
        )
    groups = getattr(module, "num_group", None) or getattr(module, "n_group", None) or 1
    kept = getattr(module, "topk_group", None) or groups
    ways: list[dict[str, Any]] = [{}]
    if groups > 1 and common["experts"] % groups == 0:
        size = common["experts"] // groups
        ways = [
            {"groups": groups, "chosen_groups": kept, "group_best": best} for best in (1, 2) if best <= size
        ]
    for sigmoid, normalized, factor, way in product((False, True), (True, False), {scale, 1.0}, ways):
        yield Router(**common, sigmoid=sigmoid, normalized=normalized, scale=factor, **way)
    jitter = getattr(module, "router_jitter_noise", None)
    if jitter and chosen == 2:
        yield Router(**common, jitter=float(jitter))

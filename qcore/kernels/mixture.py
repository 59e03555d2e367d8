"""The experts of a mixture in native code (`native/x86/mixture.h`): only those that tokens reach are
multiplied, each with all its tokens at once.

`Mixture` holds the description that the native side reads, and keeps alive what it points to.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from qcore.kernels import library
from qcore.kernels.dispatch import MODES
from qcore.kernels.library import Buffer, Layout
from qcore.kernels.packed import PackedWeight

CHUNK = 1024  # tokens at a time: the buffers of a call are sized for this number
# the functions of `Gating` in the order of `ActivationFunction` of decoder.h
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": nn.functional.silu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "relu_squared": lambda x: nn.functional.relu(x).square(),
    "gelu_quick": lambda x: x * (1.702 * x).sigmoid(),
}


class Projection(ctypes.Structure):
    """`struct Projection` of decoder.h."""

    _fields_ = [
        ("packed", ctypes.POINTER(Layout)),
        ("dense", Buffer),
        ("bias", Buffer),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("mode", ctypes.c_int32),
    ]


NORMS = {"rms": 1, "layer": 2}  # `NormKind` of decoder.h; 0 for none


class Norm(ctypes.Structure):
    """`struct Norm` of decoder.h."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("width", ctypes.c_int64),
        ("sets", ctypes.c_int64),
        ("weight", Buffer),
        ("bias", Buffer),
        ("each", Buffer),
    ]


class _Router(ctypes.Structure):
    _fields_ = [
        ("norm", Norm),
        ("logits_scale", ctypes.c_float),
        *((name, Buffer) for name in ("weight", "bias", "correction")),
        *((name, ctypes.c_int64) for name in ("experts", "chosen", "groups", "chosen_groups", "group_best")),
        *((name, ctypes.c_int64) for name in ("sigmoid", "normalized")),
        ("scale", ctypes.c_float),
        ("factors", Buffer),
        ("jitter", ctypes.c_float),
    ]


class _Expert(ctypes.Structure):
    _fields_ = [(name, Projection) for name in ("gate", "up", "down")]


class Layer(ctypes.Structure):
    """`struct Mixture` of mixture.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("hidden", "inner", "shared_inner", "interleaved")),
        *((name, ctypes.c_int64) for name in ("activation", "clamped")),
        ("alpha", ctypes.c_float),
        ("limit", ctypes.c_float),
        ("before", Norm),
        ("router", _Router),
        *((name, Buffer) for name in ("experts", "shared", "shared_gate")),
    ]


class Matrix(NamedTuple):
    """A packed weight (N, K) with its bias (N,), multiplied by activations of the precision `mode`."""

    weight: PackedWeight
    bias: torch.Tensor | None
    mode: int


class Expert(NamedTuple):
    """The matrices of one expert. Without `up`, `gate` (2 · inner, hidden) holds both."""

    gate: Matrix
    up: Matrix | None
    down: Matrix


@dataclass(frozen=True)
class Gating:
    """The function of gate g and up u that `down` multiplies: act(g) · u with `function`, one of FUNCTIONS;
    or, without one, min(g, limit) · sigmoid(alpha · min(g, limit)) · (clamp(u, ±limit) + 1). Rows of a fused
    gate and up may be `interleaved`."""

    function: str | None
    alpha: float = 0.0
    limit: float = 0.0
    interleaved: bool = False

    def reference(self, both: torch.Tensor) -> torch.Tensor:
        """Return the gate (…, inner) of `both` (…, 2 · inner) in plain torch."""
        gate, up = (both[..., ::2], both[..., 1::2]) if self.interleaved else both.chunk(2, dim=-1)
        if self.function is not None:
            return FUNCTIONS[self.function](gate) * up
        gate = gate.clamp(max=self.limit)
        return gate * (gate * self.alpha).sigmoid() * (up.clamp(-self.limit, self.limit) + 1)


@dataclass(frozen=True)
class RootMeanSquare:
    """x / sqrt(mean(x²) + epsilon) · weight (K,)."""

    weight: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the norm of x (…, K)."""
        return x * (x.pow(2).mean(-1, keepdim=True) + self.epsilon).rsqrt() * self.weight


@dataclass(frozen=True)
class Router:
    """How `chosen` of `experts` are selected, and their weights.

    Scores are the softmax or, with `sigmoid`, the sigmoid of `weight` (E, K) · x + `bias` (E,). `correction`
    (E,) is added to them for the selection only. With `groups`, only the experts of the `chosen_groups` best
    groups can be selected, where a group counts as the sum of its `group_best` best scores. The scores of the
    selected experts are divided by their sum if `normalized`, and multiplied by `scale` and by the `factors`
    (E,) of the experts. With `norm`, x is normalized before; `logits_scale` is a factor of `weight`.

    With `jitter`, two experts are selected by their logits, one after the other. The weight of each is its
    softmax among the experts not selected before whose logit z is near the largest m: those with
    (m − z) / max(|z|, m) <= 2 · jitter (the sparse mixer of Phi-3.5-MoE, arXiv 2409.12136, in inference).
    """

    experts: int
    chosen: int
    weight: torch.Tensor | None = None  # None: the caller selects
    bias: torch.Tensor | None = None
    correction: torch.Tensor | None = None
    groups: int = 1
    chosen_groups: int = 1
    group_best: int = 1
    sigmoid: bool = False
    normalized: bool = False
    scale: float = 1.0
    jitter: float = 0.0
    norm: RootMeanSquare | None = None
    logits_scale: float = 1.0
    factors: torch.Tensor | None = None

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the selected experts (T, chosen) of x (T, K) and their weights, in plain torch: the
        reference of the native code."""
        assert self.weight is not None
        given = x.float() if self.norm is None else self.norm(x.float())
        logits = torch.nn.functional.linear(given, self.weight * self.logits_scale, self.bias)
        if self.jitter:
            return self._mix(logits)
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(-1)
        by = scores if self.correction is None else scores + self.correction
        if self.groups > self.chosen_groups:
            grouped = by.unflatten(-1, (self.groups, -1))
            best = grouped.topk(self.group_best).values.sum(-1).topk(self.chosen_groups).indices
            kept = torch.zeros(len(x), self.groups, dtype=torch.bool).scatter_(1, best, True)
            by = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        chosen = by.topk(self.chosen).indices
        weights = scores.gather(1, chosen)
        if self.normalized:
            weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if self.sigmoid else 0.0))
        factors = 1.0 if self.factors is None else self.factors[chosen]
        return chosen, weights * self.scale * factors

    def _mix(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, weights, rest = [], [], logits
        for _ in range(2):
            most, best = rest.max(-1, keepdim=True)
            far = (most - logits) / torch.maximum(logits.abs(), most) > 2 * self.jitter
            chosen.append(best)
            weights.append(rest.masked_fill(far, -torch.inf).softmax(-1).gather(-1, best))
            rest = rest.scatter(-1, best, -torch.inf)
        return torch.cat(chosen, -1), torch.cat(weights, -1)


def reason_missing() -> str | None:
    """Return None if this machine can run mixtures natively, else a sentence that says why not."""
    return library.reason_without("qcore_mixture")


@dataclass
class Mixture:
    """A mixture of `experts`, all of one format, and perhaps a `shared` expert that all tokens reach, whose
    weight is the sigmoid of `shared_gate` (hidden,) · x, or 1 without it. `before` normalizes x for the
    experts.

    Tensors are contiguous float32 on the CPU. Raise `InputError` for other ones.
    """

    router: Router
    experts: Sequence[Expert]
    gating: Gating
    shared: Expert | None = None
    shared_gate: torch.Tensor | None = None
    before: RootMeanSquare | None = None
    layer: Layer = field(init=False)

    def __post_init__(self):
        self._keep: list[Any] = []
        first = self.experts[0]
        router = self.router
        self._experts = (_Expert * len(self.experts))(*map(self._expert, self.experts))
        self._shared = (_Expert * 1)(*([] if self.shared is None else [self._expert(self.shared)]))
        shared_inner = 0 if self.shared is None else self.shared.down.weight.shape[1]
        self.layer = Layer(
            first.gate.weight.shape[1],
            first.down.weight.shape[1],
            shared_inner,
            self.gating.interleaved,
            0 if self.gating.function is None else list(FUNCTIONS).index(self.gating.function),
            self.gating.function is None,
            self.gating.alpha,
            self.gating.limit,
            self._norm(self.before),
            _Router(
                self._norm(router.norm),
                router.logits_scale,
                *map(self._buffer, (router.weight, router.bias, router.correction)),
                router.experts,
                router.chosen,
                router.groups,
                router.chosen_groups,
                router.group_best,
                router.sigmoid,
                router.normalized,
                router.scale,
                self._buffer(router.factors),
                router.jitter,
            ),
            (ctypes.addressof(self._experts), ctypes.sizeof(self._experts)),
            (None, 0)
            if self.shared is None
            else (ctypes.addressof(self._shared), ctypes.sizeof(self._shared)),
            self._buffer(self.shared_gate),
        )

    @property
    def hidden(self) -> int:
        """Return the width of inputs and outputs."""
        return self.layer.hidden

    def run(
        self, x: torch.Tensor, experts: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the outputs (T, hidden) for x (T, hidden) float32. The router selects the experts, or the
        caller: `experts` (T, chosen) int64 without duplicates in a row, and their `weights` float32.

        Raise `IndexError` for an expert that does not exist, `InputError` for other shapes, and `MemoryError`
        if buffers for CHUNK tokens do not fit.
        """
        result = torch.empty_like(x)
        address, nbytes = library.buffer(x, torch.float32)
        given = [
            None if part is None else ctypes.byref(Buffer(*library.buffer(part, dtype)))
            for part, dtype in ((experts, torch.int64), (weights, torch.float32))
        ]
        status = library.functions().qcore_mixture(
            ctypes.byref(self.layer),
            address,
            nbytes // 4,
            *given,
            result.data_ptr(),
            result.numel(),
            CHUNK,
            torch.get_num_threads(),
        )
        if status:
            library.check(status, f"The input {tuple(x.shape)} cannot pass this mixture of experts")
        return result

    def _norm(self, norm: RootMeanSquare | None) -> Norm:
        if norm is None:
            return Norm()
        width, weight = norm.weight.numel(), self._buffer(norm.weight)
        return Norm(NORMS["rms"], norm.epsilon, 0.0, width, 1, weight)

    def _expert(self, expert: Expert) -> _Expert:
        return _Expert(*map(self._projection, expert))

    def _projection(self, matrix: Matrix | None) -> Projection:
        if matrix is None:
            return Projection()
        self._keep.append(matrix.weight)
        layout = ctypes.pointer(matrix.weight.layout)
        return Projection(layout, (None, 0), self._buffer(matrix.bias), *matrix.weight.shape, matrix.mode)

    def _buffer(self, tensor: torch.Tensor | None) -> tuple[int | None, int]:
        self._keep.append(tensor)
        return library.buffer(tensor, torch.float32)


def mode(activations: str) -> int:
    """Return the number of an activation precision, such as "int8"."""
    return MODES[activations]

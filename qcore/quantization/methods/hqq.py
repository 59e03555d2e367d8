"""HQQ: half-quadratic quantization, robust to outliers and without data (Badri and Shaji, 2023,
"Half-Quadratic Quantization of Large Machine Learning Models").

The grid of a group minimizes  Σ |w − ŵ|^p  with p = 0.7: a few outliers cost little, so the grid fits the
majority. Half-quadratic splitting adds an error e per weight, and solves for e and the grid in turn:

    e ← shrink(w − ŵ)      shrink(x) = sign(x) · max(|x| − |x|^(p−1) / β, 0)      β grows by κ per round
    grid ← least squares fit of w − e on the codes

The paper fits the zero point, a float there. Here zero points are small integers, so that the grid contains 0
and takes 4 bits less per group; the scale is fitted, and the zero point is rounded. Each group keeps the best
grid of all rounds.
"""

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor, round_scale
from qcore.quantization.methods import MethodInfo, register
from qcore.quantization.methods.rtn import grouped

INFO = MethodInfo(
    "hqq",
    "half-quadratic quantization (HQQ), without data",
    option="hqq",
    grids=("even",),
    limits="works on uniform grids, such as int4-g64-hqq",
    work=4.0,
    streamed=8.0,
    examples=("int4-g64-hqq", "int3-g64-hqq"),
)

NORM, BETA, KAPPA, ROUNDS = 0.7, 10.0, 1.01, 20  # the paper's
_CHUNK = 1 << 20  # weights per chunk, which stay in the cache
_SMALL = 1e-6  # lower limit of |error|, because a negative power of 0 is infinite
_TINY = torch.finfo(torch.float32).tiny


@register(INFO)
def quantize(weight: torch.Tensor, format: Format) -> QuantizedTensor:
    """Quantize `weight` (N, K) to a uniform format. Raise `InputError` for any other format."""
    if not format.even:
        raise InputError(
            f"The method hqq fits the scales of uniform grids; it cannot be used with {format.label}."
        )
    parts = [
        fit(grouped(part, format.group_size), format)
        for part in weight.split(max(1, _CHUNK // weight.shape[1]))
    ]
    scale, zero = (torch.cat(part) for part in zip(*parts, strict=True))
    kept = round_scale(scale, format)
    rows = max(1, _CHUNK // weight.shape[1])
    codes = [
        encode(
            grouped(part, format.group_size),
            kept[i * rows :][: len(part)],
            zero[i * rows :][: len(part)],
            format,
        ).flatten(1)
        for i, part in enumerate(weight.split(rows))
    ]
    whole = torch.cat(codes)[:, : weight.shape[1]].to(torch.uint8)
    return QuantizedTensor.from_codes(
        format, whole, scale, None if format.symmetric else zero.to(torch.uint8)
    )


def fit(groups: torch.Tensor, format: Format, rounds: int = ROUNDS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and integer zero point, both (N, G), of `groups` (N, G, size), by the alternating updates
    of the paper's half-quadratic solver."""
    lowest, highest = groups.aminmax(dim=2)
    top, middle = format.levels - 1, format.levels // 2
    if format.symmetric:
        scale, zero = torch.maximum(-lowest, highest) / (middle - 1), torch.full_like(lowest, middle)
    else:
        scale = (highest.clamp_min(0) - lowest.clamp_max(0)) / top
        zero = (-lowest.clamp_max(0) / scale.clamp_min(_TINY)).round_().clamp_(0, top)
    # β is an absolute threshold, so weights are scaled to a step of 1 / (levels − 1), as in the paper
    unit = (scale * top).clamp_min(_TINY)
    groups, scale = groups / unit.unsqueeze(2), scale / unit
    best, best_scale, best_zero = torch.full_like(scale, torch.inf), scale, zero
    beta = BETA
    for _ in range(rounds + 1):
        offsets = encode(groups, scale, zero, format).sub_(zero.unsqueeze(2))
        error = torch.addcmul(groups, offsets, scale.unsqueeze(2), value=-1)
        size = error.abs().clamp_min_(_SMALL)
        inverse = size.pow(NORM - 1)
        cost = (size * inverse).sum(2)
        better = cost < best
        best = torch.where(better, cost, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        aim = groups - error.sign_().mul_(size.sub_(inverse, alpha=1 / beta).clamp_min_(0))
        scale = (aim * offsets).sum(2) / offsets.square().sum(2).clamp_min(_TINY)
        scale = torch.where(scale > 0, scale, best_scale)
        if not format.symmetric:
            codes = offsets.add_(zero.unsqueeze(2))
            zero = (codes - aim / scale.clamp_min(_TINY).unsqueeze(2)).mean(2).round_().clamp_(0, top)
        beta *= KAPPA
    return best_scale * unit, best_zero


def encode(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, format: Format) -> torch.Tensor:
    """Return the nearest codes (N, G, size), as floats."""
    codes = (groups / scale.clamp_min(_TINY).unsqueeze(2)).round_().add_(zero.unsqueeze(2))
    return codes.clamp_(format.lowest, format.levels - 1)

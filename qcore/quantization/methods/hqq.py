"""HQQ: half-quadratic quantization, robust to outliers and without data (Badri and Shaji, 2023,
"Half-Quadratic Quantization of Large Machine Learning Models").

The grid of a group minimizes  Σ |w − ŵ|^p  with p = 0.7: a few outliers cost little, so the grid fits the
majority. Half-quadratic splitting adds an error e per weight, and solves for e and the grid in turn:

    e ← shrink(w − ŵ)      shrink(x) = sign(x) · max(|x| − |x|^(p−1) / β, 0)      β grows by κ per round
    grid ← least squares fit of w − e on the codes

The paper fits the zero point, a float there. In formats with an integer zero point the scale is fitted, and
the zero point is rounded; the grid contains 0 and takes 4 bits less per group. Affine formats have a float
minimum: scale and minimum are fitted together. Tables have only a scale. Each group keeps the best grid of
all rounds.
"""

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor, round_minimum, round_scale
from qcore.quantization.methods import MethodInfo, register
from qcore.quantization.methods.rtn import divisor, extremes, grouped, nearest

INFO = MethodInfo(
    "hqq",
    "half-quadratic quantization (HQQ), without data",
    option="hqq",
    grids=("even", "fixed"),
    limits="works on fixed grids, such as int4-g64-hqq",
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
    """Quantize `weight` (N, K) to a format with a fixed grid. Raise `InputError` for any other format."""
    if format.learned:
        raise InputError(
            f"The method hqq fits the scales of fixed grids; it cannot be used with {format.label}."
        )
    rows, size = max(1, _CHUNK // weight.shape[1]), format.group_size
    chunks = weight.split(rows)
    parts = [fit(grouped(part, size, repeat=format.affine), format) for part in chunks]
    scale, offset = (torch.cat(part) for part in zip(*parts, strict=True))
    kept = round_scale(scale, format)
    shift = round_minimum(offset, format) if format.affine else offset
    codes = [
        encode(
            grouped(part, size), kept[i * rows :][: len(part)], shift[i * rows :][: len(part)], format
        ).flatten(1)
        for i, part in enumerate(chunks)
    ]
    return QuantizedTensor.from_codes(
        format,
        torch.cat(codes)[:, : weight.shape[1]].to(torch.uint8),
        scale,
        offset.to(torch.uint8) if format.has_zero_points else None,
        None if format.even else format.fixed_on(weight.device),
        offset if format.affine else None,
    )


def fit(groups: torch.Tensor, format: Format, rounds: int = ROUNDS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale (N, G) and offset (N, G) of `groups` (N, G, size), by the alternating updates of the
    paper's half-quadratic solver. The offset is the minimum of an affine grid, the integer zero point of
    another even one, and 0 for a table."""
    top = format.levels - 1
    scale, offset = _start(groups, format)
    # β is an absolute threshold, so weights are scaled to a step of 1 / (levels − 1), as in the paper
    unit = (scale.abs() * (top if format.even else 2 * format.reach)).clamp_min(_TINY)
    groups, scale = groups / unit.unsqueeze(2), scale / unit
    offset = offset / unit if format.affine else offset
    best, best_scale, best_offset = torch.full_like(scale, torch.inf), scale, offset
    beta = BETA
    for _ in range(rounds + 1):
        units = _units(encode(groups, scale, offset, format), offset, format)
        error = torch.addcmul(groups, units, scale.unsqueeze(2), value=-1)
        error = error.sub_(offset.unsqueeze(2)) if format.affine else error
        size = error.abs().clamp_min_(_SMALL)
        inverse = size.pow(NORM - 1)
        cost = (size * inverse).sum(2)
        better = cost < best
        best = torch.where(better, cost, best)
        best_scale = torch.where(better, scale, best_scale)
        best_offset = torch.where(better, offset, best_offset)
        aim = groups - error.sign_().mul_(size.sub_(inverse, alpha=1 / beta).clamp_min_(0))
        if format.affine:
            scale, offset = _fit_affine(aim, units, format)
            good = scale > 0
            scale, offset = torch.where(good, scale, best_scale), torch.where(good, offset, best_offset)
        else:
            scale = (aim * units).sum(2) / units.square().sum(2).clamp_min(_TINY)
            scale = torch.where((scale > 0) | (format.signed & (scale < 0)), scale, best_scale)
        if format.has_zero_points:
            codes = units.add_(offset.unsqueeze(2))
            offset = (codes - aim / scale.clamp_min(_TINY).unsqueeze(2)).mean(2).round_().clamp_(0, top)
        beta *= KAPPA
    return best_scale * unit, best_offset * unit if format.affine else best_offset


def encode(groups: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, format: Format) -> torch.Tensor:
    """Return the nearest codes (N, G, size), as floats; `offset` (N, G) as in `fit`."""
    if not format.even:
        return nearest(groups / divisor(scale).unsqueeze(2), format.fixed_on(groups.device)).to(groups.dtype)
    if format.affine:
        codes = ((groups - offset.unsqueeze(2)) / divisor(scale).unsqueeze(2)).round_()
    else:
        codes = (groups / divisor(scale).unsqueeze(2)).round_().add_(offset.unsqueeze(2))
    return codes.clamp_(format.lowest, format.levels - 1)


def _start(groups: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and offset (N, G) from the extremes of each group."""
    scale, found = extremes(groups, format)
    if found is not None:
        return scale, found.to(groups.dtype)
    return scale, torch.full_like(scale, format.levels // 2 if format.even else 0)


def _units(codes: torch.Tensor, offset: torch.Tensor, format: Format) -> torch.Tensor:
    if not format.even:
        return format.fixed_on(codes.device)[codes.int()]
    return codes if format.affine else codes.sub_(offset.unsqueeze(2))


def _fit_affine(aim: torch.Tensor, units: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least-squares scale and minimum (N, G) of `aim` (N, G, size) on `units`. Where the minimum
    would exceed the format's highest, it stays there and only the scale is fitted."""
    mean, middle = aim.mean(2), units.mean(2)
    apart = units - middle.unsqueeze(2)
    scale = (aim * apart).sum(2) / apart.square().sum(2).clamp_min(_TINY)
    minimum = mean - scale * middle
    limit = format.highest_minimum
    if limit == torch.inf:
        return scale, minimum
    alone = ((aim - limit) * units).sum(2) / units.square().sum(2).clamp_min(_TINY)
    return torch.where(minimum > limit, alone, scale), minimum.clamp_max(limit)

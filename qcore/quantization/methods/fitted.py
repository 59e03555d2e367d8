"""Search for grids with free ends: a float minimum per group (affine formats), or a scale of either sign
(signed ones).

Each candidate is a range of values. Rounding the weights w of a group on it gives units u. The scale s and
the minimum m that fit these units best follow in closed form, for the importance h of the inputs:

    affine    s = cov(u, w) / var(u)     m = mean(w) − s · mean(u)    error ∝ var(w) − s · cov(u, w)
    signed    s = Σ h·u·w / Σ h·u²                                    error = Σ h·w² − s · Σ h·u·w

where means and variances are weighted by h. The candidate with the least error wins. K-quants round the
scales of a super-block to their integers, then fit the minimums to the rounded scales, and round these.
"""

import torch

from qcore.formats.k_quants import KQuant
from qcore.formats.kinds import Format
from qcore.formats.tensor import round_minimum, round_scale
from qcore.quantization.methods.rtn import divisor

_ENDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)  # shares of the range to cut off at one end alone
_SMALL = 1e-8  # of the mean importance: the least that an input counts


def affine(
    groups: torch.Tensor, importance: torch.Tensor, format: Format, shrink: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and minimum (N, G), as stored, of `groups` (N, G, size) for the `importance` (1, G, size)
    of their inputs; `shrink` lists the shares of the full range to try."""
    lowest, highest = groups.aminmax(dim=2)
    lowest = lowest.clamp(max=format.highest_minimum)
    span, top = highest - lowest, format.levels - 1
    weights = importance + _SMALL * importance.mean() + torch.finfo(torch.float32).tiny
    weights = weights / weights.sum(2, keepdim=True)
    mean = (groups * weights).sum(2)
    centered = groups - mean.unsqueeze(2)
    variance = (centered.square() * weights).sum(2)
    best = torch.full_like(lowest, torch.inf)
    scale, minimum = span / top, lowest
    cuts = [((1 - share) / 2, (1 - share) / 2) for share in shrink]
    cuts += [pair for cut in _ENDS[1:] for pair in ((cut, 0.0), (0.0, cut))]
    for below, above in cuts:
        start, step = lowest + below * span, span * ((1 - below - above) / top)
        units = (groups - start.unsqueeze(2)).div_(divisor(step).unsqueeze(2)).round_().clamp_(0, top)
        weighted = units * weights
        middle = weighted.sum(2)
        spread = (weighted * units).sum(2) - middle.square()
        common = (weighted * centered).sum(2)
        fit = common / spread.clamp_min(torch.finfo(torch.float32).tiny)
        floor = mean - fit * middle
        error = variance - fit * common
        if (
            format.highest_minimum < torch.inf
        ):  # where the minimum reaches its limit, only the scale is fitted
            limit = format.highest_minimum
            above_limit = floor > limit
            squares = spread + middle.square()
            product = common + mean * middle - limit * middle
            alone = product / squares.clamp_min(torch.finfo(torch.float32).tiny)
            fit = torch.where(above_limit, alone, fit)
            error = torch.where(above_limit, variance + (mean - limit).square() - alone * product, error)
            floor = floor.clamp_max(limit)
        better = (error < best) & (fit > 0) & (spread > 0)
        best = torch.where(better, error, best)
        scale, minimum = torch.where(better, fit, scale), torch.where(better, floor, minimum)
    if not isinstance(format, KQuant):
        return round_scale(scale, format), round_minimum(minimum, format)
    units = (groups - minimum.unsqueeze(2)).div_(divisor(scale).unsqueeze(2)).round_().clamp_(0, top)
    weighted = units * importance
    scale = format.decode_scale(format.encode_scale(scale, (weighted * units).sum(2) + _SMALL))
    total = importance.sum(2).expand_as(scale) + torch.finfo(torch.float32).tiny
    minimum = ((groups * importance).sum(2) - scale * weighted.sum(2)) / total
    return scale, format.decode_minimum(format.encode_minimum(minimum.clamp_max(0), total))


def signed(
    groups: torch.Tensor, importance: torch.Tensor, format: Format, shrink: tuple[float, ...]
) -> torch.Tensor:
    """Return the scale (N, G), as stored, of `groups` (N, G, size) for the `importance` (1, G, size) of their
    inputs; `shrink` lists the shares of the full range to try, with either sign."""
    lowest, highest = groups.aminmax(dim=2)
    weights = importance + _SMALL * importance.mean() + torch.finfo(torch.float32).tiny
    weighted = groups * weights
    total = (weighted * groups).sum(2)
    if format.even:
        low, high = -float(format.levels // 2), float(format.levels // 2 - 1)
    else:
        table = format.fixed_on(groups.device).sort().values
        midpoints = (table[1:] + table[:-1]) / 2
        low, high = float(table[0]), float(table[-1])
    best = torch.full_like(lowest, torch.inf)
    scale, strength = torch.zeros_like(lowest), torch.zeros_like(lowest)
    for sign in (1, -1):
        bottom, peak = (lowest, highest) if sign > 0 else (-highest, -lowest)
        full = sign * torch.maximum(bottom / low, peak / high)
        for share in shrink:
            units = (groups / divisor(full * share).unsqueeze(2)).contiguous()
            if format.even:
                units = units.round_().clamp_(low, high)
            else:
                units = table[torch.bucketize(units, midpoints, out_int32=True)]
            squares = (units.square() * weights).sum(2)
            product = (units * weighted).sum(2)
            fit = product / squares.clamp_min(torch.finfo(torch.float32).tiny)
            error = total - fit * product
            better = error < best
            best = torch.where(better, error, best)
            scale, strength = torch.where(better, fit, scale), torch.where(better, squares, strength)
    if isinstance(format, KQuant):
        return format.decode_scale(format.encode_scale(scale, strength + _SMALL))
    return round_scale(scale, format)

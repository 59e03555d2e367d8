"""Least-squares scales and minimums of affine grids and K-quants, one block of inputs after another.

With the codes fixed, the quantized weights of a block are linear in its unknowns: scale s and minimum m of
each group, with the features u (the codes) and 1. The squared error of the layer's output is a parabola in
them,

    f(x) = (x − x*)ᵀ · A · (x − x*)        A_ij = φ_iᵀ · H · φ_j

for the features φ of the block, the Hessian H of the inputs, and the minimum x* given the weights of all
other blocks. The values of x* are rounded to what the format stores, and the next block compensates: its x*
is computed with the rounded weights.

K-quants store integers times a unit per super-block. They are found by coordinate descent on f: each integer
in turn, then the units. A row whose error would grow keeps its scales, so the error never grows.
"""

from dataclasses import replace

import torch

from qcore.formats.k_quants import KQuant
from qcore.formats.super_blocks import SUPER_BLOCK
from qcore.formats.tensor import round_minimum, round_scale
from qcore.quantization.methods.grid import Grid

ROUNDS = 3  # of coordinate descent over the integers of a super-block
_TINY = torch.finfo(torch.float32).tiny


def refit(pull: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> Grid:
    """Return `grid` with better scales and minimums for the codes (K, N), as stored. `pull` (K, N) is the
    Hessian times the weights."""
    format, columns = grid.format, len(codes)
    size = format.group_size or columns
    block = max(SUPER_BLOCK // size, 1) * size
    units, values = grid.units(codes), grid.values(codes)
    scale = grid.scale.clone()
    minimum = None if grid.minimum is None else grid.minimum.clone()
    for start in range(0, columns, block):
        span = slice(start, min(start + block, columns))
        groups = slice(start // size, -(-span.stop // size))
        slope = hessian[span] @ values - pull[span]
        features = _Features(units[span], hessian[span, span], size, minimum is not None)
        old = scale[groups].T if minimum is None else torch.cat((scale[groups], minimum[groups])).T
        new = _better(features.matrix, features.gradient(slope), old.contiguous(), grid)
        count = groups.stop - groups.start
        scale[groups] = new[:, :count].T
        if minimum is not None:
            minimum[groups] = new[:, count:].T
        values[span] += features.values((new - old).T)
    return replace(grid, scale=scale, minimum=minimum)


class _Features:
    """The features of a block of B inputs: the units (B, N) of the codes per group of `size` inputs and, with
    `minimums`, ones per group. `matrix` is A (N, F, F) for the Hessian (B, B) of the block."""

    def __init__(self, units: torch.Tensor, hessian: torch.Tensor, size: int, minimums: bool):
        self.units, self.size, self.minimums = units, size, minimums
        inputs, rows = units.shape
        self.count = count = -(-inputs // size)
        self.matrix = units.new_empty(rows, count * (1 + minimums), count * (1 + minimums))
        for group in range(count):
            own = slice(group * size, (group + 1) * size)
            self.matrix[:, :count, group] = self._sums((hessian[:, own] @ units[own]) * units).T
            if minimums:
                ones = hessian[:, own].sum(1, keepdim=True)
                cross = self._sums(units * ones).T
                self.matrix[:, :count, count + group] = cross
                self.matrix[:, count + group, :count] = cross
                self.matrix[:, count:, count + group] = self._sums(ones).T

    def gradient(self, slope: torch.Tensor) -> torch.Tensor:
        """Return half the gradient (N, F) of f for H · error, `slope` (B, N)."""
        parts = [self._sums(self.units * slope)] + ([self._sums(slope)] if self.minimums else [])
        return torch.cat(parts).T.contiguous()

    def values(self, unknowns: torch.Tensor) -> torch.Tensor:
        """Return the weights (B, N) of the unknowns (F, N)."""
        spread = unknowns.repeat_interleave(self.size, dim=0)
        inputs, half = len(self.units), self.count * self.size
        values = self.units * spread[:inputs]
        return values + spread[half : half + inputs] if self.minimums else values

    def _sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sums (groups, N) of `values` (B, N) over the inputs of each group."""
        missing = self.count * self.size - len(values)
        if missing:
            values = torch.nn.functional.pad(values, (0, 0, 0, missing))
        return values.unflatten(0, (self.count, self.size)).sum(1)


def _better(matrix: torch.Tensor, gradient: torch.Tensor, old: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the stored unknowns (N, F) of less error than `old`, or those where there are none."""
    format = grid.format
    ridge = matrix.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) * 1e-5 + _TINY
    ridged = matrix.clone()
    ridged.diagonal(dim1=1, dim2=2).add_(ridge)
    best = old - torch.linalg.solve(ridged, gradient)
    count = old.shape[1] // (2 if format.affine else 1)
    if not format.signed:
        best[:, :count] = torch.where(best[:, :count] > 0, best[:, :count], old[:, :count])
    best = torch.where(best.isfinite(), best, old)
    if isinstance(format, KQuant):
        new = _integers(ridged, best, format)
    else:
        new = torch.cat((round_scale(best[:, :count], format), round_minimum(best[:, count:], format)), dim=1)
    step = new - old
    change = ((matrix @ step.unsqueeze(2)).squeeze(2) * step + 2 * gradient * step).sum(1, keepdim=True)
    return torch.where(change < 0, new, old)


def _integers(matrix: torch.Tensor, wanted: torch.Tensor, format: KQuant) -> torch.Tensor:
    """Return integers times units (N, F) near the minimum `wanted` (N, F) of a parabola with this
    `matrix`."""
    count = format.groups_per_block
    weights = matrix.diagonal(dim1=1, dim2=2)
    top = (1 << format.scale_bits) - 1
    lowest, highest = -format.scale_offset, top - format.scale_offset
    parts = format.encode_scale(wanted[:, :count], weights[:, :count])
    integers, units = format.scale_integers(parts).float(), parts["scale"].float()
    low, high = units.new_full((1, count), lowest), units.new_full((1, count), highest)
    if format.affine:
        # the best minimums for the rounded scales, then their integers
        shift = format.decode_scale(parts) - wanted[:, :count]
        moved = torch.linalg.solve(matrix[:, count:, count:], matrix[:, count:, :count] @ shift.unsqueeze(2))
        minimum = (wanted[:, count:] - moved.squeeze(2)).clamp_max(0)
        parts = format.encode_minimum(minimum, weights[:, count:])
        integers = torch.cat((integers, -format.minimum_integers(parts).float()), dim=1)
        units = torch.cat((units, parts["minimum"].float()), dim=1)
        low, high = (
            torch.cat((low, units.new_full((1, count), -top)), 1),
            torch.cat((high, units.new_zeros(1, count)), 1),
        )
    for _ in range(ROUNDS):
        _sweep(matrix, wanted, integers, units, low, high, count)
        units = _refit_units(matrix, wanted, integers, units, count)
    return integers * units.repeat_interleave(count, dim=1)


def _sweep(
    matrix: torch.Tensor,
    wanted: torch.Tensor,
    integers: torch.Tensor,
    units: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    count: int,
) -> None:
    """Choose the best integer for each unknown in turn, given the others, in place."""
    spread = units.repeat_interleave(count, dim=1)
    inverse = torch.where(spread == 0, 0, 1 / spread)
    error = integers * spread - wanted
    for i in range(integers.shape[1]):
        slope = (matrix[:, i] * error).sum(1)
        target = integers[:, i] * spread[:, i] - slope / matrix[:, i, i]
        integers[:, i] = (target * inverse[:, i]).round().clamp(low[0, i], high[0, i])
        error[:, i] = integers[:, i] * spread[:, i] - wanted[:, i]


def _refit_units(
    matrix: torch.Tensor, wanted: torch.Tensor, integers: torch.Tensor, units: torch.Tensor, count: int
) -> torch.Tensor:
    """Return the best units (N, 1 or 2), as float16, for fixed integers."""
    parts = integers.unflatten(1, (-1, count))  # (N, units, groups)
    basis = parts.new_zeros(len(integers), parts.shape[1], integers.shape[1])
    for i in range(parts.shape[1]):
        basis[:, i, i * count : (i + 1) * count] = parts[:, i]
    moved = basis @ matrix
    system = moved @ basis.transpose(1, 2)
    ridge = system.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) * 1e-6 + _TINY
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    goal = (moved @ wanted.unsqueeze(2)).squeeze(2) + ridge * units
    found = torch.linalg.solve(system, goal).half().float()
    before = integers * units.repeat_interleave(count, dim=1) - wanted
    after = integers * found.repeat_interleave(count, dim=1) - wanted
    cost = [(each * (matrix @ each.unsqueeze(2)).squeeze(2)).sum(1, keepdim=True) for each in (before, after)]
    return torch.where((cost[1] < cost[0]) & found.isfinite().all(1, keepdim=True), found, units)

"""The grid of a matrix: the values that its weights may take, chosen for the least error weighted by the
inputs.

A method that chooses codes one input at a time (GPTQ, coordinate descent) needs all grids before it starts
("static groups"). The grid of a group of weights w, with the importance h of its inputs (the diagonal of the
Hessian), is found by shrinking the range step by step (weight clipping, as in AWQ, arXiv 2306.00978), and has
the least

    Σ h_j · (w_j − round(w_j))²

With h = 1 this is clipping by plain squared error, which makes language models worse: a few inputs are a
hundred times larger than the others, and the weights of these inputs must be precise.

Scales are held transposed, (G, N) for G groups and N outputs, because the methods loop over the inputs.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor, round_minimum, round_scale
from qcore.kernels.choosing import Levels
from qcore.quantization.methods import fitted
from qcore.quantization.methods.rtn import divisor, grouped

SHRINK = tuple(1 - 0.025 * step for step in range(21))  # shares of the full range to try: 1 … 0.5
_CHUNK = 1 << 21  # weights searched at a time
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Grid:
    """`scale` (G, N) as it will be stored; `zero` (G, N) for asymmetric grids; `minimum` (G, N), as it will
    be stored, for affine grids; `table` (16,) or (N, 16), ascending, for codebooks.

    `order` turns an index into an ascending table into the format's code. Without a scale (per-channel
    tables) `scale` is all ones.
    """

    format: Format
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    table: torch.Tensor | None = None
    order: torch.Tensor | None = None
    minimum: torch.Tensor | None = None

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return self.format.lowest

    @property
    def scaled(self) -> bool:
        """False for per-channel tables, which have no scale."""
        return self.format.scaled

    @cached_property
    def midpoints(self) -> torch.Tensor:
        """Halfway between the entries of `table`: (15,) or (N, 15)."""
        if self.table is None:
            raise ValueError(f"{self.format.label} has no table")
        return ((self.table[..., 1:] + self.table[..., :-1]) / 2).contiguous()

    @cached_property
    def inverse(self) -> torch.Tensor:
        """The reciprocal of the scale, (G, N)."""
        return divisor(self.scale).reciprocal()

    @cached_property
    def _rows(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | int]]:
        """(1 / scale, scale, zero point or minimum) per group, (N,) each, unbound once so that `round`
        indexes a list."""
        middle = self.format.levels // 2 if self.table is None else 0
        stored = self.zero if self.minimum is None else self.minimum
        zeros = [middle] * len(self.scale) if stored is None else stored.unbind()
        return list(zip(self.inverse.unbind(), self.scale.unbind(), zeros, strict=True))

    @cached_property
    def levels(self) -> Levels:
        """The grid for the native function that chooses codes."""
        if self.table is not None:
            return Levels(self.inverse, self.scale, table=self.table, midpoints=self.midpoints)
        levels = self.format.levels
        return Levels(
            self.inverse, self.scale, self.zero, levels // 2, self.lowest, levels - 1, minimum=self.minimum
        )

    def round(self, values: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes (…, N), as floats, nearest to `values` (…, N) of a `group`, and their dequantized
        values."""
        inverse, scale, zero = self._rows[group]
        if self.minimum is not None:
            codes = torch.sub(values, zero).mul_(inverse).round_().clamp_(0, self.format.levels - 1)
            return codes, torch.mul(codes, scale).add_(zero)
        if self.table is None:
            codes = torch.mul(values, inverse).round_().add_(zero).clamp_(self.lowest, self.format.levels - 1)
            return codes, torch.sub(codes, zero).mul_(scale)
        relative = values * inverse
        if self.table.ndim == 1:
            codes = torch.bucketize(relative, self.midpoints, out_int32=True)
            return codes.float(), self.table.index_select(0, codes.flatten()).view(codes.shape).mul_(scale)
        codes = torch.searchsorted(
            self.midpoints, relative.movedim(-1, 0).reshape(relative.shape[-1], -1).contiguous()
        )
        values = self.table.gather(1, codes)
        shape = (relative.shape[-1], *relative.shape[:-1])
        return codes.view(shape).movedim(0, -1).float(), values.view(shape).movedim(0, -1) * scale

    def units(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the values (K, N) of codes (K, N) in units of the scale; above the minimum in an affine
        grid."""
        if self.minimum is not None:
            return codes
        if self.table is None:
            return codes - (
                self.format.levels // 2 if self.zero is None else self.spread(self.zero, len(codes))
            )
        if self.table.ndim == 1:
            return self.table[codes.long()]
        return self.table.gather(1, codes.T.long().contiguous()).T

    def spread(self, per_group: torch.Tensor, columns: int) -> torch.Tensor:
        """Repeat a value per group (G, N) for each of the group's inputs: (K, N)."""
        size = self.format.group_size
        return (
            per_group.expand(columns, -1)
            if size is None
            else per_group.repeat_interleave(size, dim=0)[:columns]
        )

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the dequantized weights (K, N) of codes (K, N)."""
        values = self.units(codes).mul(self.spread(self.scale, len(codes)))
        return values if self.minimum is None else values.add_(self.spread(self.minimum, len(codes)))

    def with_scale(self, scale: torch.Tensor, minimum: torch.Tensor | None = None) -> "Grid":
        """Return the same grid with other scales (G, N), and other minimums (G, N) if given, rounded to the
        precision that the format stores."""
        scale = round_scale(scale.T.contiguous(), self.format).T.contiguous()
        if minimum is None:
            return replace(self, scale=scale)
        minimum = round_minimum(minimum.T.contiguous(), self.format).T.contiguous()
        return replace(self, scale=scale, minimum=minimum)

    def tensor(self, codes: torch.Tensor) -> QuantizedTensor:
        """Return the quantized tensor with codes (K, N)."""
        codes = codes.T.to(torch.uint8).contiguous()
        if self.order is not None:
            codes = self.order.to(torch.uint8)[codes.long()]
        zero = None if self.zero is None else self.zero.T.to(torch.uint8).contiguous()
        table = self.table
        if table is not None:
            table = table.to(torch.float16) if self.format.learned else self.format.fixed_on(codes.device)
        return QuantizedTensor.from_codes(
            self.format,
            codes,
            self.scale.T.contiguous() if self.scaled else None,
            zero,
            table,
            None if self.minimum is None else self.minimum.T.contiguous(),
        )


def search(
    weight: torch.Tensor, format: Format, importance: torch.Tensor, shrink: tuple[float, ...] = SHRINK
) -> Grid:
    """Return the grid of `format` with the least error of `weight` (N, K), weighted by the `importance` (K,)
    of the inputs; `shrink` lists the shares of the full range to try."""
    if format.affine or format.signed:
        return _search_fitted(weight, format, importance, shrink)
    if not format.even:
        return _search_table(weight, format, importance, shrink)
    size = format.group_size
    per_group = grouped(importance.unsqueeze(0), size)  # (1, G, size)
    rows = max(1, _CHUNK // weight.shape[1])
    parts = [_search_uniform(grouped(part, size), per_group, format, shrink) for part in weight.split(rows)]
    scale = torch.cat([scale for scale, _ in parts])
    zeros = [zero for _, zero in parts if zero is not None]
    zero = torch.cat(zeros).T.contiguous() if zeros else None
    return Grid(format, round_scale(scale, format).T.contiguous(), zero)


def _search_uniform(
    groups: torch.Tensor, importance: torch.Tensor, format: Format, shrink: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scale and zero point (N, G) of `groups` (N, G, size), for the `importance` (1, G, size)."""
    lowest, highest = groups.aminmax(dim=2)
    top, middle = format.levels - 1, format.levels // 2
    best = torch.full_like(lowest, torch.inf)
    scale, zero = torch.zeros_like(lowest), torch.zeros_like(lowest)
    for share in shrink:
        if format.symmetric:
            tried, offset = (
                torch.maximum(-lowest, highest) * (share / (middle - 1)),
                torch.full_like(lowest, middle),
            )
        else:
            low, high = lowest.clamp_max(0) * share, highest.clamp_min(0) * share
            tried = (high - low) / top
            offset = (-low / tried.clamp_min(_TINY)).round_().clamp_(0, top)
        tried = tried.to(torch.float16).float() if not format.double_quant else tried
        codes = (groups / tried.clamp_min(_TINY).unsqueeze(2)).round_().add_(offset.unsqueeze(2))
        codes.clamp_(format.lowest, top).sub_(offset.unsqueeze(2)).mul_(tried.unsqueeze(2)).sub_(groups)
        error = codes.square_().mul_(importance).sum(2)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, tried, scale), torch.where(better, offset, zero)
    return scale, None if format.symmetric else zero


def _search_fitted(
    weight: torch.Tensor, format: Format, importance: torch.Tensor, shrink: tuple[float, ...]
) -> Grid:
    size, rows = format.group_size, max(1, _CHUNK // weight.shape[1])
    per_group = grouped(importance.unsqueeze(0), size)
    scales, minimums = [], []
    for part in weight.split(rows):
        groups = grouped(part, size, repeat=format.affine)
        if format.affine:
            scale, minimum = fitted.affine(groups, per_group, format, shrink)
            minimums.append(minimum)
        else:
            scale = fitted.signed(groups, per_group, format, shrink)
        scales.append(scale)
    scale = torch.cat(scales).T.contiguous()
    if format.affine:
        return Grid(format, scale, minimum=torch.cat(minimums).T.contiguous())
    if format.even:
        return Grid(format, scale)
    table, order = format.fixed_on(weight.device).sort()
    return Grid(format, scale, table=table, order=order)


def _search_table(
    weight: torch.Tensor, format: Format, importance: torch.Tensor, shrink: tuple[float, ...]
) -> Grid:
    from qcore.quantization.methods.kmeans import weighted_table

    columns = weight.shape[1]
    if not format.scaled:
        return Grid(format, weight.new_ones(1, len(weight)), table=weighted_table(weight, importance))
    groups, per_group = (
        grouped(weight, format.group_size),
        grouped(importance.unsqueeze(0), format.group_size),
    )
    absmax = groups.abs().amax(2) / format.reach
    order: torch.Tensor | None = None
    if format.fixed is not None:
        table, order = format.fixed_on(weight.device).sort()
    else:
        relative = (groups / absmax.clamp_min(_TINY).unsqueeze(2)).flatten(1)[:, :columns]
        strength = (per_group * absmax.unsqueeze(2).square()).flatten(1)[:, :columns]
        table = weighted_table(relative.reshape(1, -1), strength.reshape(1, -1))[0]
    midpoints = (table[1:] + table[:-1]) / 2
    scales = []
    for part, top in zip(
        groups.split(max(1, _CHUNK // columns)), absmax.split(max(1, _CHUNK // columns)), strict=True
    ):
        best, scale = torch.full_like(top, torch.inf), torch.zeros_like(top)
        for share in shrink:
            tried = top * share
            relative = part / tried.clamp_min(_TINY).unsqueeze(2)
            error = (
                table[torch.bucketize(relative.contiguous(), midpoints, out_int32=True)] - relative
            ).square_().mul_(per_group).sum(2) * tried.square()
            better = error < best
            best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        scales.append(scale)
    return Grid(format, round_scale(torch.cat(scales), format).T.contiguous(), table=table, order=order)


def nearest(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the codes (K, N) nearest to `weight` (K, N): plain rounding."""
    size = grid.format.group_size or len(weight)
    return torch.cat([grid.round(part, group)[0] for group, part in enumerate(weight.split(size))])


def read(tensor: QuantizedTensor) -> tuple[Grid, torch.Tensor]:
    """Return the grid and the codes (K, N), as floats, of a stored `tensor`: the inverse of `Grid.tensor`."""
    format, codes = tensor.format, tensor.unpacked_codes()
    scale = tensor.scales()
    scale = codes.new_ones(1, len(codes), dtype=torch.float32) if scale is None else scale.T.contiguous()
    if format.affine:
        minimum = tensor.minimums()
        return Grid(
            format, scale, minimum=None if minimum is None else minimum.T.contiguous()
        ), codes.T.float().contiguous()
    if format.even:
        points = tensor.zero_points()
        zero = points.T.contiguous() if isinstance(points, torch.Tensor) else None
        return Grid(format, scale, zero), codes.T.float().contiguous()
    table = tensor.table
    order: torch.Tensor | None = None
    if not format.learned:
        table, order = table.sort()
        codes = order.argsort()[codes.long()]
    return Grid(format, scale, table=table, order=order), codes.T.float().contiguous()

"""Learned codebooks: Lloyd's algorithm finds the 16 values that minimize the squared error of the weights.

Per channel (`group_size=None`) each row of N gets 16 values of its own (SqueezeLLM, arXiv 2306.07629, without
its weighting). Per group, the weights are first divided by their group's largest magnitude and one table is
learned for the whole matrix.

Values are sorted first: in one dimension the clusters of k-means are intervals, so assignment is a binary
search in the midpoints, a centroid is a difference of prefix sums, and no distance matrix is needed. The
centroids start halfway between evenly spaced quantiles and evenly spaced values, which converges in few
rounds.
"""

import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import ENTRIES
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor, spread
from qcore.quantization.methods import MethodInfo, register
from qcore.quantization.methods.rtn import grouped

INFO = MethodInfo(
    "kmeans",
    "a table learned by k-means",
    grids=("learned",),
    limits="learns a table, as kmeans4 has",
    work=7.0,
)

ROUNDS = 30
_ROWS = 512  # rows clustered at a time
# values sampled at even strides for a table per matrix: enough for four digits of 16 centroids
_SAMPLE = 1 << 20


@register(INFO)
def quantize(weight: torch.Tensor, format: Format) -> QuantizedTensor:
    """Quantize `weight` (N, K) to a `kmeans4` format. Raise `InputError` for any other format."""
    if not format.learned:
        raise InputError(
            f"The method kmeans learns the table of a kmeans4 format; it cannot be used with {format}."
        )
    if format.group_size is None:
        tables, codes = zip(*(_per_row(part.float()) for part in weight.split(_ROWS)), strict=True)
        return QuantizedTensor.from_codes(format, torch.cat(codes), codebook=torch.cat(tables))
    return _per_group(weight, format)


def _per_row(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tables (R, 16), float16, and the codes (R, K) of the rows `values` (R, K)."""
    table = lloyd(values).to(torch.float16)
    return table, assign(values, table.float())


def _per_group(weight: torch.Tensor, format: Format) -> QuantizedTensor:
    columns, size = weight.shape[1], format.group_size
    scale = grouped(weight, size).abs().amax(dim=2)
    relative = weight.float() / spread(scale, columns, size).clamp_min(torch.finfo(torch.float32).tiny)
    sample = relative.flatten()[:: max(1, relative.numel() // _SAMPLE)]
    table = lloyd(sample.unsqueeze(0)).to(torch.float16)
    codes = torch.cat(
        [assign(part.reshape(1, -1), table.float()).view(part.shape) for part in relative.split(_ROWS)]
    )
    return QuantizedTensor.from_codes(format, codes, scale, codebook=table[0])


def weighted_table(values: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """Return ascending tables (R, 16), float16 values in float32, for `values` (R, C) with squared errors
    weighted by `importance` (C,) or (R, C)."""
    importance = importance.expand(values.shape)
    step = max(1, values.shape[1] // _SAMPLE)
    parts = zip(values.float().split(_ROWS), importance.split(_ROWS), strict=True)
    return (
        torch.cat([lloyd(part[:, ::step], weights=weights[:, ::step]) for part, weights in parts])
        .to(torch.float16)
        .float()
    )


def lloyd(values: torch.Tensor, rounds: int = ROUNDS, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the ascending centroids (R, 16) of each row of `values` (R, C), with squared errors weighted by
    `weights` (R, C) (Lloyd's algorithm)."""
    ordered, order = values.sort(dim=1)
    ordered, count = ordered.contiguous(), values.shape[1]
    importance = (
        torch.ones_like(ordered, dtype=torch.float64)
        if weights is None
        else weights.gather(1, order).double()
    )
    sums, masses = (
        torch.nn.functional.pad(part.cumsum(1), (1, 0)) for part in (ordered * importance, importance)
    )
    middle = (torch.arange(ENTRIES, device=values.device) + 0.5) / ENTRIES
    by_rank = ordered[:, (middle * count).long().clamp_max(count - 1)]
    lowest, highest = ordered[:, :1], ordered[:, -1:]
    centroids = (by_rank + lowest + (highest - lowest) * middle) / 2
    for _ in range(rounds):
        edges = torch.searchsorted(ordered, (centroids[:, 1:] + centroids[:, :-1]) / 2, right=True)
        bounds = torch.cat(
            (torch.zeros_like(edges[:, :1]), edges, torch.full_like(edges[:, :1], count)), dim=1
        )
        mass = masses.gather(1, bounds).diff(dim=1)
        means = (sums.gather(1, bounds).diff(dim=1) / mass.clamp_min(1e-300)).float()
        updated = torch.where((bounds.diff(dim=1) > 0) & (mass > 0), means, centroids)
        if torch.equal(updated, centroids):
            break
        centroids = updated
    return centroids.sort(dim=1).values


def assign(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the index (R, C), uint8, of the entry nearest to each of `values` (R, C) in the row's ascending
    `table` (R, 16)."""
    midpoints = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
    return torch.searchsorted(midpoints, values.contiguous(), out_int32=True).to(torch.uint8)

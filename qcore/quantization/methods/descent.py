"""Coordinate descent on the squared error of a layer's output: codes and scales in turn. Each step is exact,
so the error never grows.

For a row w of a layer's weights, its quantized form q and the Hessian H of the inputs, the layer's squared
error is

    f(q) = (q − w) · H · (q − w)ᵀ

Codes: with all others fixed, f is a parabola in one weight, with its minimum at  q_j − [H (q − w)]_j / H_jj;
the nearest value of the grid is optimal (QuantEase, arXiv 2309.01885). Scales: with the codes
fixed, q = Σ_g s_g · u_g for the units u_g of each group, and f is quadratic in the scales s: a small linear
system per row. Tables of values without a scale: the same, with u_e marking the weights that use entry e.
GPTQ rounds each weight once; alternating the two steps improves its result.
"""

from dataclasses import replace

import torch

from qcore.formats.k_quants import KQuant
from qcore.quantization.methods import block_refit, stepwise
from qcore.quantization.methods.grid import Grid

ROUNDS = 3


def objective(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the sum over rows of (q − w) H (q − w)ᵀ, for (K, N) matrices: the squared error of the layer's
    output, times 2 / n."""
    error = quantized - weight
    return float((error * (hessian @ error)).sum(dtype=torch.float64))


def refine(
    weight: torch.Tensor,
    codes: torch.Tensor,
    grids: list[Grid],
    hessian: torch.Tensor,
    rounds: int = ROUNDS,
    sweeps: int = 1,
) -> tuple[torch.Tensor, list[Grid]]:
    """Return better codes (K, N) and grids for `weight` (K, N), starting from `codes`. `weight` may stack
    several matrices that share their inputs: its columns belong to the `grids` in order."""
    pull = hessian @ weight
    for _ in range(rounds):
        codes, grids = refit(pull, codes, grids, hessian)
        for _ in range(sweeps):
            codes = sweep(weight, codes, stack(grids), hessian)
    return refit(pull, codes, grids, hessian)


def sweep(weight: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> torch.Tensor:
    """Return new codes (K, N) after one pass over all inputs (cyclic coordinate descent of QuantEase)."""
    values = grid.values(codes)
    return stepwise.choose(
        grid, hessian, hessian @ (values - weight), hessian.diagonal().reciprocal(), values
    )


def refit(
    pull: torch.Tensor, codes: torch.Tensor, grids: list[Grid], hessian: torch.Tensor
) -> tuple[torch.Tensor, list[Grid]]:
    """Return the codes, and the grids with the least-squares scales (or tables) for them, rounded to the
    stored precision. Codes change only if sorting a table moved its entries. `pull` (K, N) is H · w, the
    Hessian times the weights."""
    fitted, kept, start = [], [], 0
    for grid in grids:
        part = slice(start, start := start + grid.scale.shape[1])
        own = codes[:, part].contiguous()
        if grid.minimum is not None or isinstance(grid.format, KQuant):
            fitted.append(block_refit.refit(pull[:, part], own, grid, hessian))
        elif grid.scaled:
            fitted.append(_refit_scale(pull[:, part], own, grid, hessian))
        else:
            own, grid = _refit_table(pull[:, part], own, grid, hessian)
            fitted.append(grid)
        kept.append(own)
    return torch.cat(kept, dim=1), fitted


def _refit_scale(pull: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> Grid:
    columns, rows = pull.shape
    units, count = grid.units(codes), grid.format.groups(columns)
    size = grid.format.group_size or columns
    system, wanted = pull.new_empty(rows, count, count), pull.new_empty(rows, count)
    for group in range(count):
        span, upto = slice(group * size, min((group + 1) * size, columns)), min((group + 1) * size, columns)
        shared = (hessian[:upto, span] @ units[span]).mul_(units[:upto])
        shared = torch.nn.functional.pad(shared, (0, 0, 0, (group + 1) * size - upto))
        system[:, group, : group + 1] = shared.view(group + 1, size, rows).sum(1).T
        system[:, :group, group] = system[:, group, :group]  # the same, as the Hessian is symmetric
        wanted[:, group] = (units[span] * pull[span]).sum(0)
    ridge = _ridge(system)
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    scale = torch.linalg.solve(system, wanted + ridge * grid.scale.T).T
    usable = (grid.format.signed | (scale > 0)) & scale.isfinite()
    return grid.with_scale(torch.where(usable, scale, grid.scale))


def _refit_table(
    pull: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor
) -> tuple[torch.Tensor, Grid]:
    before = grid.table
    if before is None:
        raise ValueError(f"{grid.format.label} has no table")
    rows, entries = before.shape
    used = codes.T.long().contiguous()  # (N, K)
    wanted = pull.new_zeros(rows, entries).scatter_add_(1, used, pull.T.contiguous())
    system = pull.new_zeros(rows, entries, entries)
    for entry in range(entries):
        system[:, entry].scatter_add_(1, used, (hessian @ (codes == entry).float()).T.contiguous())
    ridge = _ridge(system)
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    table = torch.linalg.solve(system, wanted + ridge * before)
    table = torch.where(table.isfinite(), table, before).to(torch.float16).float()
    ascending, order = table.sort(dim=1)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(entries, device=order.device).expand(rows, -1)
    )
    return place.gather(1, used).T.float().contiguous(), replace(grid, table=ascending)


def _ridge(system: torch.Tensor) -> torch.Tensor:
    """Return the ridge (N, 1) that keeps unknowns without any weight at their previous value."""
    return system.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) * 1e-5 + torch.finfo(torch.float32).tiny


def stack(grids: list[Grid]) -> Grid:
    """Return one grid for several matrices that share their inputs and their format."""
    if len(grids) == 1:
        return grids[0]
    first = grids[0]
    table = first.table
    if table is not None and first.order is None:  # learned, so each matrix has its own
        tables = [(grid.table, grid.scale.shape[1]) for grid in grids if grid.table is not None]
        table = torch.cat([each.expand(rows, -1) for each, rows in tables])
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    minimums = [grid.minimum for grid in grids if grid.minimum is not None]
    return replace(
        first,
        scale=torch.cat([grid.scale for grid in grids], dim=1),
        zero=torch.cat(zeros, dim=1) if zeros else None,
        minimum=torch.cat(minimums, dim=1) if minimums else None,
        table=table,
    )

"""Coordinate descent on what a layer gets wrong: codes and scales in turn, each step exact, so the error never grows.

For a row w of a layer's weights, its quantized form q and the Hessian H of the inputs, the layer's squared error is

    f(q) = (q − w) · H · (q − w)ᵀ

Codes: with all others fixed, f is a parabola in one weight, with its minimum at  q_j − [H (q − w)]_j / H_jj;  the nearest value of the
grid is the best one (QuantEase, arXiv 2309.01885). Scales: with the codes fixed, q = Σ_g s_g · u_g for the units u_g of each group, and
f is a quadratic in the scales s: a small linear system for each row. Tables of values without a scale: the same with u_e marking where
entry e is used. Alternating the two goes on where GPTQ, which visits each weight once, has to stop.
"""

from dataclasses import replace

import torch

from qcore.methods.grid import Grid, groups_in

BLOCK = 64
ROUNDS = 3


def objective(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Σ over rows of (q − w) H (q − w)ᵀ, for (K, N) matrices: the squared error of the layer's output, times 2 / n."""
    error = quantized - weight
    return float((error * (hessian @ error)).sum(dtype=torch.float64))


def refine(
    weight: torch.Tensor, codes: torch.Tensor, grids: list[Grid], hessian: torch.Tensor, rounds: int = ROUNDS, sweeps: int = 1
) -> tuple[torch.Tensor, list[Grid]]:
    """Better codes (K, N) and grids for `weight` (K, N), starting from `codes`. The columns belong to the `grids` one after another
    (several matrices that read the same inputs are worked on together)."""
    for _ in range(rounds):
        codes, grids = refit(weight, codes, grids, hessian)
        for _ in range(sweeps):
            codes = sweep(weight, codes, stack(grids), hessian)
    return refit(weight, codes, grids, hessian)


def sweep(weight: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> torch.Tensor:
    """One pass over all inputs. Returns new codes (K, N)."""
    columns, codes = len(weight), codes.clone()
    values = grid.values(codes)
    gradient = hessian @ (values - weight)
    curvature = hessian.diagonal().tolist()
    now, slope, chosen = values.unbind(), gradient.unbind(), codes.unbind()  # views, made once
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        moves = torch.empty(stop - start, weight.shape[1])
        for j, move in zip(range(start, stop), moves.unbind(), strict=True):
            wish = torch.sub(now[j], slope[j], alpha=1 / curvature[j])
            code, rounded = grid.round(wish, grid.group_of(j))
            chosen[j].copy_(code)
            torch.sub(rounded, now[j], out=move)
            if j + 1 < stop:
                gradient[j + 1 : stop].addr_(hessian[j, j + 1 : stop], move)
        if stop < columns:
            gradient[stop:].addmm_(hessian[stop:, start:stop], moves)
    return codes


def refit(weight: torch.Tensor, codes: torch.Tensor, grids: list[Grid], hessian: torch.Tensor) -> tuple[torch.Tensor, list[Grid]]:
    """The grids with the scales (or tables) that are best for `codes`, in the precision that is stored, and the codes, which change
    only where the entries of a table have changed places."""
    fitted, kept, start = [], [], 0
    for grid in grids:
        part = slice(start, start := start + grid.scale.shape[1])
        own = codes[:, part].contiguous()
        if grid.scaled:
            fitted.append(_refit_scale(weight[:, part], own, grid, hessian))
        else:
            own, grid = _refit_table(weight[:, part], own, grid, hessian)
            fitted.append(grid)
        kept.append(own)
    return torch.cat(kept, dim=1), fitted


def _refit_scale(weight: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> Grid:
    columns, rows = weight.shape
    units, count = grid.units(codes), groups_in(columns, grid.format)
    size = grid.format.group_size or columns
    pad = count * size - columns
    system, wanted = torch.empty(rows, count, count), torch.empty(rows, count)
    moved = hessian @ weight
    for group in range(count):
        span = slice(group * size, min((group + 1) * size, columns))
        pull = (hessian[:, span] @ units[span]).mul_(units)
        pull = torch.nn.functional.pad(pull, (0, 0, 0, pad)) if pad else pull
        system[:, group] = pull.view(count, size, rows).sum(1).T
        wanted[:, group] = (units[span] * moved[span]).sum(0)
    ridge = _ridge(system)
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    scale = torch.linalg.solve(system, wanted + ridge * grid.scale.T).T
    usable = (scale > 0) & scale.isfinite()
    return grid.with_scale(torch.where(usable, scale, grid.scale))


def _refit_table(weight: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> tuple[torch.Tensor, Grid]:
    rows, entries = grid.table.shape
    used = codes.T.long().contiguous()  # (N, K)
    wanted = torch.zeros(rows, entries).scatter_add_(1, used, (hessian @ weight).T.contiguous())
    system = torch.zeros(rows, entries, entries)
    for entry in range(entries):
        system[:, entry].scatter_add_(1, used, (hessian @ (codes == entry).float()).T.contiguous())
    ridge = _ridge(system)
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    table = torch.linalg.solve(system, wanted + ridge * grid.table)
    table = torch.where(table.isfinite(), table, grid.table).to(torch.float16).float()
    ascending, order = table.sort(dim=1)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(entries).expand(rows, -1))
    return place.gather(1, used).T.float().contiguous(), replace(grid, table=ascending)


def _ridge(system: torch.Tensor) -> torch.Tensor:
    """(N, 1): what pulls unknowns that no weight depends on to where they were."""
    return system.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) * 1e-5 + torch.finfo(torch.float32).tiny


def stack(grids: list[Grid]) -> Grid:
    """One grid for several matrices that share their inputs and their format."""
    if len(grids) == 1:
        return grids[0]
    first = grids[0]
    table = first.table
    if table is not None and first.order is None:  # learned, so each matrix has its own
        table = torch.cat([grid.table.expand(grid.scale.shape[1], -1) for grid in grids])
    zero = None if first.zero is None else torch.cat([grid.zero for grid in grids], dim=1)
    return replace(first, scale=torch.cat([grid.scale for grid in grids], dim=1), zero=zero, table=table)

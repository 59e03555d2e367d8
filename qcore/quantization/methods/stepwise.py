"""Codes chosen one input at a time, with the error propagated to later inputs: the loop shared by GPTQ and
coordinate descent.

With `state` S and `matrix` M, the weights of input j get the codes nearest to a target, and the error e_j is
propagated to all later inputs k:    S_k ← S_k + M_jk · e_j.

    GPTQ       S: the compensated weights               target: S_j
               e_j = (rounded − S_j) · step_j
    descent    S: the gradient of the squared error     target: w_j − step_j · S_j     (w: the current values)
               e_j = rounded − w_j

Updates are applied one block of inputs at a time (GPTQ, arXiv 2210.17323, step 2), so that most
of the work is a matrix product.
"""

import torch

from qcore.kernels import choosing
from qcore.quantization.methods.grid import Grid

BLOCK = 64


def choose(
    grid: Grid,
    matrix: torch.Tensor,
    state: torch.Tensor,
    step: torch.Tensor,
    values: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the codes (K, N), as floats, of all inputs, in the order of `matrix` (K, K) and `state` (K, N).
    `state` may be modified in place.

    `step` is (K,). `values` (K, N) are the current values, for descent; None for GPTQ. `order` (K,) maps the
    inputs to those of the grid (default: the same order).
    """
    columns = len(state)
    size = grid.format.group_size or columns
    places = torch.arange(columns, device=state.device) if order is None else order
    groups = (places // size).to(torch.int32)
    codes = torch.empty_like(state, memory_format=torch.contiguous_format)
    matrix, state, step = matrix.contiguous(), state.contiguous(), step.contiguous()
    values = None if values is None else values.contiguous()
    block = _natively if choosing.available(grid.levels) else _in_torch
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = block(start, stop, grid, groups, matrix, state, values, step, codes)
        if stop < columns:
            state[stop:].addmm_(matrix[start:stop, stop:].T, errors)
    return codes


def _natively(start, stop, grid, groups, matrix, state, values, step, codes) -> torch.Tensor:
    return choosing.choose(start, stop, grid.levels, groups, matrix, state, values, step, codes)


def _in_torch(start, stop, grid, groups, matrix, state, values, step, codes) -> torch.Tensor:
    steps, places = step[start:stop].tolist(), groups[start:stop].tolist()
    errors = state.new_empty(stop - start, state.shape[1])
    for i, error in enumerate(errors.unbind()):
        j = start + i
        now = state[j] if values is None else values[j]
        target = now if values is None else torch.sub(now, state[j], alpha=steps[i])
        code, rounded = grid.round(target, places[i])
        codes[j] = code
        torch.sub(rounded, now, out=error)
        if values is None:
            error.mul_(steps[i])
        if j + 1 < stop:
            state[j + 1 : stop].addr_(matrix[j, j + 1 : stop], error)
    return errors

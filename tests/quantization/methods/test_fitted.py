"""Grids with a float minimum or signed scales, and the refit of K-quants: the results are stored exactly,
better than plain rounding, and least squares where a definition says so."""

import pytest
import torch

from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.k_quants import KQuant
from qcore.formats.signed import Signed
from qcore.quantization import methods
from qcore.quantization.methods import block_refit, descent, gptq
from qcore.quantization.methods.grid import Grid, nearest, read, search

FORMATS = [Affine(4, 32), Affine(3, 64), Signed(4), Signed(5), Codebook("iq4nl", 32)]
K_QUANTS = [KQuant(bits) for bits in (2, 3, 4, 5, 6)]
EVERY = pytest.mark.parametrize("format", FORMATS + K_QUANTS, ids=lambda format: format.label)


def layer(columns=512, rows=24, seed=0):
    """Return a weight (N, K) and the Hessian of correlated inputs, of which some are much larger than
    others."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(columns, generator=generator).exp()
    mixed = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / 20
    inputs = torch.randn(2 * columns, columns, generator=generator) @ mixed * size
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight, gptq.damped(inputs.T @ inputs / columns)


def cost(weight, tensor, hessian):
    return descent.objective(weight.T, tensor.dequantize().T, hessian)


@EVERY
def test_search_beats_rounding_to_nearest_where_it_counts(format):
    weight, hessian = layer()
    importance = hessian.diagonal()
    grid = search(weight, format, importance)
    found = grid.tensor(nearest(weight.T.contiguous(), grid))
    plain = methods.quantize(weight, format, "rtn")
    errors = [((each.dequantize() - weight).square() * importance).sum() for each in (found, plain)]
    assert errors[0] < 0.8 * errors[1]


@EVERY
def test_a_grid_is_stored_exactly(format):
    weight, hessian = layer(rows=7)
    (solution,) = gptq.quantize([weight], format, hessian)
    torch.testing.assert_close(
        solution.tensor.dequantize().T, solution.grid.values(solution.codes), rtol=0, atol=1e-7
    )
    grid, codes = read(solution.tensor)
    assert torch.equal(codes, solution.codes)
    assert torch.equal(grid.scale, solution.grid.scale)
    if format.affine:
        assert torch.equal(grid.minimum, solution.grid.minimum)


@EVERY
def test_each_step_of_descent_lowers_the_error(format):
    weight, hessian = layer()
    goal = weight.T.contiguous()
    grid = search(weight, format, hessian.diagonal())
    codes = gptq.solve(goal, grid, hessian)
    errors = [descent.objective(goal, grid.values(codes), hessian)]
    for _ in range(3):
        codes, (grid,) = descent.refit(hessian @ goal, codes, [grid], hessian)
        errors.append(descent.objective(goal, grid.values(codes), hessian))
        codes = descent.sweep(goal, codes, grid, hessian)
        errors.append(descent.objective(goal, grid.values(codes), hessian))
    assert all(after <= before * (1 + 1e-5) for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.97 * errors[0]


def test_scale_and_minimum_of_a_block_are_those_of_least_squares():
    weight, hessian = layer(columns=128, rows=5)
    format = Affine(4, 32)
    grid = search(weight, format, torch.ones(128))
    codes = nearest(weight.T.contiguous(), grid)
    found = block_refit.refit(hessian @ weight.T, codes, grid, hessian)
    root = torch.linalg.cholesky(hessian).T  # |root · e|² is the error e · H · e
    groups = torch.eye(4).repeat_interleave(32, dim=0)
    for row in range(5):
        features = torch.cat((groups * codes[:, row : row + 1], groups), dim=1)
        expected = torch.linalg.lstsq((root @ features).double(), (root @ weight[row]).double()).solution
        torch.testing.assert_close(
            torch.cat((found.scale[:, row], found.minimum[:, row])), expected.float(), rtol=5e-3, atol=1e-6
        )


def test_the_best_integers_of_a_small_super_block_are_found():
    """Against every pair of integers, for units that are given."""
    format = KQuant(2)
    generator = torch.Generator().manual_seed(3)
    matrix = torch.eye(32).expand(1, 32, 32).contiguous()
    unit = 0.25
    wanted = torch.cat(
        (torch.rand(1, 16, generator=generator) * 3, -torch.rand(1, 16, generator=generator) * 3), 1
    )
    found = block_refit._integers(matrix, wanted, format)
    plain = torch.cat((wanted[:, :16] / unit, wanted[:, 16:] / unit), 1).round() * unit
    assert (found - wanted).square().sum() <= (plain - wanted).square().sum()


def test_groups_on_one_side_of_zero_use_a_minimum_and_k_quants_stop_at_zero():
    weight = torch.rand(3, 256, generator=torch.Generator().manual_seed(0)) + 1
    ones = torch.ones(256)
    affine, k_quant = search(weight, Affine(4, 32), ones), search(weight, KQuant(4), ones)
    assert (affine.minimum > 0.9).all() and (affine.scale < 0.08).all()
    assert (k_quant.minimum <= 0).all() and (k_quant.scale > 0.1).all()


def test_a_signed_grid_turns_its_longer_end_to_the_longer_tail():
    weight = torch.linspace(-8, 7, 16).repeat(2)[None] * torch.tensor([[1.0], [-1.0]])
    grid = search(weight, Signed(4), torch.ones(32))
    assert grid.scale.tolist() == [[1.0, -1.0]]
    assert torch.equal(grid.tensor(nearest(weight.T.contiguous(), grid)).dequantize(), weight)


@pytest.mark.row("9")
@EVERY
def test_zeros_and_constants_stay_finite(format):
    weight = torch.zeros(3, 512)
    weight[1] = 0.25
    weight[2, 7] = 1.0
    hessian = torch.eye(512)
    hessian[300:, 300:] = 0  # inputs that were always 0
    (solution,) = gptq.quantize([weight], format, hessian)
    values = solution.tensor.dequantize()
    assert values.isfinite().all()
    assert not values[0].any() or values[0].abs().max() < 1e-6
    torch.testing.assert_close(values[2, 7], torch.tensor(1.0), rtol=0.05, atol=0)


def test_stacked_grids_are_split_again_with_their_minimums():
    weight, hessian = layer(rows=10)
    together = gptq.quantize([weight[:4], weight[4:]], Affine(4, 32), hessian)
    alone = gptq.quantize([weight], Affine(4, 32), hessian)[0]
    assert torch.equal(torch.cat([each.tensor.dequantize() for each in together]), alone.tensor.dequantize())


def test_a_grid_without_a_scale_holds_its_minimum():
    format = Affine(4, 32)
    grid = Grid(format, torch.zeros(1, 2), minimum=torch.tensor([[0.5, -0.5]]))
    codes, values = grid.round(torch.tensor([[0.7, -0.6]]), 0)
    assert values.tolist() == [[0.5, -0.5]]
    assert codes.isfinite().all()

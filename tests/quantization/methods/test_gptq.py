"""GPTQ against the paper's equations, one column at a time with an explicit inverse, and against rounding to
nearest."""

import pytest
import torch

from qcore.formats.uniform import Uniform
from qcore.quantization.methods import descent, gptq, rtn
from qcore.quantization.methods.grid import search

COLUMNS, ROWS = 96, 12


def layer(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (N, K), and the Hessian of correlated inputs some of which are large, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5 + torch.eye(COLUMNS)
    inputs = torch.randn(512, COLUMNS, generator=generator) @ mix
    inputs[:, ::17] *= 8
    return torch.randn(ROWS, COLUMNS, generator=generator), 2 / 512 * inputs.T @ inputs


def literal(weight: torch.Tensor, grid, hessian: torch.Tensor) -> torch.Tensor:
    """Return codes (K, N) by optimal brain quantization in a fixed order: invert the Hessian of the remaining
    columns, round one column, update the others."""
    size = grid.format.group_size or COLUMNS
    order = hessian.diagonal().argsort(descending=True).tolist()
    left, codes = weight.double().T.clone(), torch.empty(COLUMNS, ROWS)
    for position, column in enumerate(order):
        free = order[position:]
        inverse = torch.linalg.inv(hessian.double()[free][:, free])
        codes[column], rounded = grid.round(left[column].float(), column // size)
        error = (left[column] - rounded) / inverse[0, 0]
        left[free] -= inverse[0].unsqueeze(1) * error
    return codes


@pytest.mark.parametrize(
    "format", [Uniform(4, 32, False), Uniform(3, None, True)], ids=["int4-g32", "int3-sym"]
)
def test_codes_are_those_of_the_equations(format):
    weight, hessian = layer()
    grid, hessian = search(weight, format, hessian.diagonal()), gptq.damped(hessian)
    codes = gptq.solve(weight.T.contiguous(), grid, hessian)
    assert (
        codes == literal(weight, grid, hessian)
    ).float().mean() > 0.995  # float32 may fall on the other side of a tie


def test_factor_is_that_of_the_inverse():
    hessian = gptq.damped(layer()[1]).double()
    factor = gptq.inverse_factor(hessian)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(hessian))


def test_an_input_that_is_always_zero_does_no_harm():
    weight, hessian = layer()
    hessian[5], hessian[:, 5] = 0, 0
    tensor = gptq.quantize([weight], Uniform(4, 32, False), hessian)[0].tensor
    assert torch.isfinite(tensor.dequantize()).all()


@pytest.mark.parametrize("bits", [3, 4])
def test_error_is_well_below_rounding_and_descent_lowers_it_further(bits):
    (weight, hessian), format = layer(), Uniform(bits, 32, False)

    def error(tensor):
        return descent.objective(weight.T, tensor.dequantize().T, hessian)

    rounded = error(rtn.quantize(weight, format))
    plain = error(gptq.quantize([weight], format, hessian, rounds=0)[0].tensor)
    refined = error(gptq.quantize([weight], format, hessian)[0].tensor)
    assert plain < 0.7 * rounded and refined < plain

"""HQQ against a transcription of its equations in Python floats, one group at a time, and against rounding to
nearest."""

import math
import statistics

import pytest
import torch

from qcore.base.errors import InputError
from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.k_quants import KQuant
from qcore.formats.signed import Signed
from qcore.formats.uniform import Uniform
from qcore.quantization.methods import hqq, rtn


def literal(weights: list[float], levels: int) -> tuple[float, int]:
    """Scale and zero point of one asymmetric group; 20 rounds of p = 0.7, β = 10, κ = 1.01."""
    top = levels - 1
    unit = max(max(weights), 0) - min(min(weights), 0)
    weights = [weight / unit for weight in weights]
    scale, beta = 1 / top, 10.0
    zero = round(-min(min(weights), 0) / scale)
    best = (math.inf, scale, zero)
    for _ in range(21):
        offsets = [min(max(round(weight / scale) + zero, 0), top) - zero for weight in weights]
        errors = [weight - scale * offset for weight, offset in zip(weights, offsets, strict=True)]
        cost = sum(max(abs(error), 1e-6) ** 0.7 for error in errors)
        if cost < best[0]:
            best = (cost, scale, zero)
        sizes = [max(abs(error), 1e-6) for error in errors]
        shrunk = [
            math.copysign(max(size - size**-0.3 / beta, 0), error)
            for size, error in zip(sizes, errors, strict=True)
        ]
        aim = [weight - each for weight, each in zip(weights, shrunk, strict=True)]
        scale = sum(a * u for a, u in zip(aim, offsets, strict=True)) / sum(u * u for u in offsets)
        scale = scale if scale > 0 else best[1]
        zero = min(
            max(round(sum(u + zero - a / scale for u, a in zip(offsets, aim, strict=True)) / len(aim)), 0),
            top,
        )
        beta *= 1.01
    return best[1] * unit, best[2]


@pytest.mark.parametrize("bits", [3, 4])
def test_grids_are_those_of_the_equations(bits):
    groups = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, zero = hqq.fit(groups, Uniform(bits, 32, False))
    expected = [[literal(group.tolist(), 2**bits) for group in row] for row in groups]
    torch.testing.assert_close(
        scale, torch.tensor([[s for s, _ in row] for row in expected], dtype=torch.float64)
    )
    assert zero.tolist() == [[z for _, z in row] for row in expected]


@pytest.mark.parametrize(
    "format",
    [
        Uniform(4, 64, False),
        Uniform(3, 64, False),
        Uniform(4, 64, True),
        Codebook("nf4", 64),
        Codebook("iq4nl", 32),
        Affine(4, 64),
        Signed(4),
        *map(KQuant, (2, 3, 4, 5, 6)),
    ],
    ids=lambda each: each.label,
)
def test_its_own_measure_is_below_that_of_rounding(format):
    weight = torch.distributions.StudentT(4.0).sample((32, 256)) if torch.manual_seed(0) else None

    def cost(tensor):
        return (tensor.dequantize() - weight).abs().pow(hqq.NORM).sum()

    assert cost(hqq.quantize(weight, format)) < 0.995 * cost(rtn.quantize(weight, format))


def test_learned_tables_are_refused():
    with pytest.raises(InputError, match="fixed grids"):
        hqq.quantize(torch.randn(4, 64), Codebook("kmeans4", 64))


def literal_affine(weights: list[float], levels: int) -> tuple[float, float]:
    """Scale and minimum of one group with a float minimum; the rounds as in `literal`."""
    top = levels - 1
    unit = max(weights) - min(weights)
    weights = [weight / unit for weight in weights]
    scale, minimum, beta = 1 / top, min(weights), 10.0
    best = (math.inf, scale, minimum)
    for _ in range(21):
        codes = [min(max(round((weight - minimum) / scale), 0), top) for weight in weights]
        errors = [weight - scale * code - minimum for weight, code in zip(weights, codes, strict=True)]
        sizes = [max(abs(error), 1e-6) for error in errors]
        cost = sum(size**0.7 for size in sizes)
        if cost < best[0]:
            best = (cost, scale, minimum)
        aim = [
            weight - math.copysign(max(size - size**-0.3 / beta, 0), error)
            for weight, size, error in zip(weights, sizes, errors, strict=True)
        ]
        fitted = statistics.linear_regression(codes, aim)
        scale, minimum = fitted.slope, fitted.intercept
        beta *= 1.01
    return best[1] * unit, best[2] * unit


def test_affine_grids_are_those_of_the_equations():
    groups = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, minimum = hqq.fit(groups, Affine(3, 32))
    expected = [[literal_affine(group.tolist(), 8) for group in row] for row in groups]
    torch.testing.assert_close(
        torch.stack((scale, minimum), dim=2), torch.tensor(expected, dtype=torch.float64)
    )

"""The loop over the inputs: the native function against torch's operations, equal where both are exact, and
close elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.signed import Signed
from qcore.formats.uniform import Uniform
from qcore.kernels import choosing, library
from qcore.quantization.methods import descent, gptq, stepwise
from qcore.quantization.methods.grid import Grid, search

needs_native = pytest.mark.skipif(
    library.reason_without("qcore_choose_codes") is not None, reason="written for AVX2"
)
FORMATS = [
    Uniform(4, 32, False),
    Uniform(3, None, True),
    Codebook("nf4", 32),
    Codebook("kmeans4", None),
    Codebook("kmeans4", 32),
    Codebook("iq4nl", 32),
    Affine(4, 32),
    Signed(4),
]


def both(monkeypatch, *arguments, **keywords) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes as chosen natively, and with torch's operations."""
    grid, matrix, state, *others = arguments
    natively = stepwise.choose(grid, matrix, state.clone(), *others, **keywords)
    monkeypatch.setattr(choosing, "available", lambda levels: False)
    return natively, stepwise.choose(grid, matrix, state.clone(), *others, **keywords)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    columns=st.integers(1, 140),
    rows=st.integers(1, 40),
    symmetric=st.booleans(),
    slope=st.booleans(),
)
def test_exact_numbers_give_the_same_codes(seed, columns, rows, symmetric, slope):
    generator = torch.Generator().manual_seed(seed)
    whole = lambda low, high, *shape: torch.randint(low, high, shape, generator=generator).float()  # noqa: E731
    format = Uniform(4, 32, symmetric)
    groups = -(-columns // 32)
    zero = None if symmetric else whole(0, 16, groups, rows)
    grid = Grid(format, 2 ** whole(-2, 3, groups, rows), zero)
    matrix = (
        whole(-1, 2, columns, columns) / 4
    )  # sums of at most 140 moves, all multiples of 1/64 and small: nothing is rounded away
    matrix = matrix * (torch.rand(columns, columns, generator=generator) < 0.1)
    state, step = whole(-64, 65, columns, rows) / 8, torch.ones(columns)
    values = grid.values(whole(1, 16, columns, rows)) if slope else None
    with pytest.MonkeyPatch.context() as patch:
        natively, reference = both(patch, grid, matrix, state, step, values)
    assert torch.equal(natively, reference)


@needs_native
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_codes_agree_where_sums_are_rounded(format, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 200, generator=generator) @ (
        torch.eye(200) + torch.randn(200, 200, generator=generator) / 30
    )
    weight, hessian = torch.randn(19, 200, generator=generator), gptq.damped(2 / 400 * inputs.T @ inputs)
    grid, order = search(weight, format, hessian.diagonal()), hessian.diagonal().argsort(descending=True)
    factor = gptq.inverse_factor(hessian[order][:, order])
    natively, reference = both(
        monkeypatch, grid, factor, weight.T[order], factor.diagonal().reciprocal(), order=order
    )
    back = order.argsort()
    assert (
        natively == reference
    ).float().mean() > 0.98  # a tie that falls the other way moves all that comes after it
    errors = [
        descent.objective(weight.T, grid.values(codes[back]), hessian) for codes in (natively, reference)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@needs_native
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_without_correlations_each_weight_is_rounded_for_itself(format):
    weight = torch.randn(70, 37, generator=torch.Generator().manual_seed(2))
    grid = search(weight.T, format, torch.ones(70))
    codes = stepwise.choose(grid, torch.eye(70), weight.clone(), torch.ones(70))
    assert torch.equal(
        codes,
        torch.cat(
            [grid.round(part, group)[0] for group, part in enumerate(weight.split(format.group_size or 70))]
        ),
    )

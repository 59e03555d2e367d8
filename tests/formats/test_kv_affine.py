"""The cache's number format: exact where it can be, within half a step everywhere, and one sentence where it
cannot hold a number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import RunError
from qcore.formats.kv_affine import dequantize, quantize

BITS = (8, 4)


@pytest.mark.parametrize("bits", BITS)
def test_what_lies_on_a_grid_comes_back_exactly(bits):
    """Multiples of a quarter, from -3 upwards, with both ends in every group."""
    codes = torch.randint(2**bits, (3, 32, 16), generator=torch.Generator().manual_seed(0))
    codes[:, 0], codes[:, -1] = 0, 2**bits - 1
    x = 0.25 * codes - 3.0
    kept = quantize(x, bits, dim=1)
    assert torch.equal(dequantize(kept, bits, 16), x)
    assert kept.scale.eq(0.25).all() and kept.smallest.eq(-3).all()
    assert kept.nbytes == 3 * 32 * 16 * bits // 8 + 2 * 3 * 16 * 2


@pytest.mark.parametrize("bits", BITS)
def test_groups_of_one_value_come_back_to_float16s_last_place(bits):
    x = torch.tensor([0.0, 1.0, -1.0, 3.14159, 1e-3, -7.77e2, 60000.0, 1e-9]).repeat_interleave(8).view(8, 8)
    back = dequantize(quantize(x, bits, dim=1), bits, 8)
    assert torch.allclose(back, x, rtol=1e-3, atol=2e-7) and torch.equal(back[0], x[0])


@given(st.data(), st.sampled_from(BITS), st.sampled_from((0, 1)))
def test_no_number_is_off_by_more_than_half_a_step(data, bits, dim):
    scale, shift = data.draw(st.floats(1e-6, 1e3)), data.draw(st.floats(-1e4, 1e4))
    values = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=64, max_size=64))
    x = torch.tensor(values).view(4, 16) * scale + shift
    kept = quantize(x, bits, dim)
    error = (dequantize(kept, bits, 16) - x).abs()
    assert (error <= kept.scale.float() / 2 + 1e-6 * x.abs()).all()
    widest = x.amax(dim, keepdim=True) - x.amin(dim, keepdim=True)
    ends = (
        2e-3 * x.abs().amax(dim, keepdim=True) + 1e-6
    )  # what rounding the smallest value to float16 can add to the range
    assert (kept.scale.float() <= (widest + ends) / (2**bits - 1) * 1.01 + 1e-6).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e6, 1e8])
def test_a_number_that_float16_cannot_hold_is_one_sentence(value):
    x = torch.zeros(8, 8)
    x[3, 3] = value
    with pytest.raises(RunError, match="cannot be quantized"):
        quantize(x, 4, dim=0)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.formats.packing import pack, packed_width, unpack

BITS = range(2, 9)


@given(
    bits=st.sampled_from(BITS), rows=st.integers(1, 5), columns=st.integers(1, 67), seed=st.integers(0, 999)
)
def test_unpacking_gives_the_codes_back(bits, rows, columns, seed):
    codes = torch.randint(
        0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, packed_width(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", BITS, ids=lambda bits: f"{bits}bit")
def test_no_bit_is_wasted(bits):
    assert packed_width(64, bits) == 8 * bits


@pytest.mark.parametrize("bits", BITS, ids=lambda bits: f"{bits}bit")
def test_the_layout_is_a_little_endian_word_of_eight_codes(bits):
    codes = (torch.arange(8) % (1 << bits)).to(torch.uint8)
    word = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == word.to_bytes(8, "little")[:bits]

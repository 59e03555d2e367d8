import pytest
import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.quantization import methods


def test_a_uniform_tensor_reads_as_scale_times_code_minus_zero_point():
    codes = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]], dtype=torch.uint8)
    scale, zero = torch.tensor([[0.5, 2.0]]), torch.tensor([[3, 8]], dtype=torch.uint8)
    tensor = QuantizedTensor.from_codes(Uniform(4, 8, symmetric=False), codes, scale, zero)
    expected = [0.5 * (code - 3) for code in range(8)] + [2.0 * (code - 8) for code in range(8, 16)]
    assert tensor.dequantize().tolist() == [expected]


def test_a_codebook_tensor_reads_as_scale_times_table_entry():
    codes = torch.arange(16, dtype=torch.uint8).unsqueeze(0)
    format = Codebook("nf4", 16)
    tensor = QuantizedTensor.from_codes(format, codes, torch.tensor([[2.0]]), codebook=format.fixed)
    assert torch.equal(tensor.dequantize(), 2 * format.fixed.unsqueeze(0))


# Stored bits for N x K = 32 x 128, by hand: codes + scales (16 bits per group) + zero points (as wide as a
# code) + tables.
BY_HAND = {
    "int8 per channel": (Uniform(8, None, True), 32 * 128 * 8 + 32 * 16),
    "int4-g64": (Uniform(4, 64, False), 32 * 128 * 4 + 64 * (16 + 4)),
    "int4-g64-sym": (Uniform(4, 64, True), 32 * 128 * 4 + 64 * 16),
    "int3-g32": (Uniform(3, 32, False), 32 * 128 * 3 + 128 * (16 + 3)),
    "int4-g64-dq": (Uniform(4, 64, False, double_quant=True), 32 * 128 * 4 + 64 * (8 + 4) + 1 * 64),
    "nf4-g64": (Codebook("nf4", 64), 32 * 128 * 4 + 64 * 16),
    "kmeans4": (Codebook("kmeans4", None), 32 * 128 * 4 + 32 * 16 * 16),
    "kmeans4-g64": (Codebook("kmeans4", 64), 32 * 128 * 4 + 64 * 16 + 16 * 16),
}


@pytest.mark.parametrize(("format", "bits"), BY_HAND.values(), ids=BY_HAND)
def test_stored_bytes_equal_a_count_by_hand(format, bits):
    method = "kmeans" if getattr(format, "kind", "") == "kmeans4" else "rtn"
    tensor = methods.quantize(torch.randn(32, 128), format, method)
    assert 8 * tensor.nbytes == bits
    assert tensor.bits_per_weight == bits / (32 * 128)


def test_chosen_rows_equal_those_of_the_whole():
    for format in (
        Uniform(4, 32, False),
        Uniform(8, None, True),
        Uniform(4, 32, False, double_quant=True),
        Codebook("fp4", 32),
    ):
        tensor = methods.quantize(torch.randn(9, 70), format, "rtn")
        rows = torch.tensor([8, 0, 0, 3])
        assert torch.equal(tensor.dequantize(rows=rows), tensor.dequantize()[rows])


def test_a_scale_that_float16_cannot_hold_is_refused():
    with pytest.raises(InputError, match="too large to quantize"):
        methods.quantize(torch.full((4, 64), 1e9), Uniform(4, 64, False), "rtn")


@pytest.mark.parametrize("size", [0, 7, 12, -8], ids=str)
def test_group_sizes_that_do_not_fill_bytes_are_refused(size):
    with pytest.raises(ValueError, match="positive multiple of 8"):
        Uniform(4, size, False)
    with pytest.raises(ValueError, match="positive multiple of 8"):
        Codebook("nf4", size)


@pytest.mark.parametrize("bits", [0, 1, 9], ids=str)
def test_widths_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="2 to 8"):
        Uniform(bits, 64, False)

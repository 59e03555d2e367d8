"""Weights in ggml's types: the same numbers as the package `gguf` decodes, in both directions, and
refusals."""

import gguf
import numpy as np
import pytest
import torch
from interop.ggml_bytes import decoded, random_blocks

from qcore.base.errors import InputError
from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.k_quants import KQuant
from qcore.formats.signed import Signed
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.interop import ggml
from qcore.interop.ggml_blocks import LAYOUTS
from qcore.quantization import methods

TYPES = list(ggml.FORMATS)


@pytest.mark.parametrize("name", TYPES)
def test_a_read_weight_dequantizes_as_gguf_does_and_is_written_unchanged(name):
    data = random_blocks(name)
    columns = data.shape[1] // LAYOUTS[name].bytes * LAYOUTS[name].inputs
    weight = ggml.decode(data, name, (len(data), columns))
    assert torch.equal(weight.dequantize(), decoded(name, data))
    assert torch.equal(ggml.encode(weight), data)
    assert weight.nbytes == data.numel(), "the format has the bytes of the type"


@pytest.mark.parametrize("name", ggml.NUMBERS)
def test_the_numbers_of_the_types_are_those_of_gguf(name):
    assert gguf.GGMLQuantizationType[name].value == ggml.NUMBERS[name]


SAME = [
    *ggml.FORMATS.values(),
    Uniform(8, None, True),
    Uniform(8, 64, True),
    Uniform(8, 64, True, double_quant=True),
    Uniform(4, 32, True),
    Uniform(4, 96, True),
    Uniform(5, 64, True),
    Codebook("iq4nl", 64),
    Affine(4, 128),
    Signed(5, 64),
]


@pytest.mark.parametrize("format", SAME, ids=lambda format: format.label)
def test_a_quantized_weight_is_written_with_the_same_numbers(format):
    torch.manual_seed(0)
    original = torch.randn(5, 768)
    original[2, 64:128] = 0.0
    weight = methods.quantize(original, format, format.method)
    name, data = ggml.type_of(format, 768), ggml.encode(weight)
    assert data.shape == (5, ggml.row_bytes(name, 768))
    assert torch.equal(decoded(name, data), weight.dequantize())
    assert torch.equal(ggml.decode(data, name, (5, 768)).dequantize(), weight.dequantize())


def test_a_last_group_may_be_shorter():
    weight = methods.quantize(torch.randn(3, 96), Uniform(4, 64, True), "rtn")
    assert torch.equal(decoded("Q4_0", ggml.encode(weight)), weight.dequantize())


REFUSED = [
    (Uniform(4, 64, False), 256, "zero points", "gguf-q4_1"),
    (Uniform(8, None, False), 256, "zero points", "gguf-q8_0"),
    (Uniform(3, 64, True), 256, "3-bit codes", "gguf-q3_k"),
    (Uniform(4, 48, True), 96, "per 48 inputs", "gguf-q4_0"),
    (Uniform(4, 32, True), 48, "has 48", "floating point"),
    (Codebook("nf4", 64), 256, "table of nf4", "gguf-iq4_nl"),
    (Codebook("kmeans4", None), 256, "learned table", "gguf-iq4_nl"),
    (Affine(3, 64), 256, "3-bit codes", "gguf-q3_k"),
    (KQuant(4), 576, "blocks of 256", "gguf-q5_0"),
]


@pytest.mark.parametrize(("format", "columns", "property", "instead"), REFUSED)
def test_what_no_type_holds_is_refused_with_the_property_and_the_recipe_that_fits(
    format, columns, property, instead
):
    reason = ggml.reason_against(format, (4, columns))
    assert property in reason and f"{instead}" in reason
    if columns % 256 == 0:
        with pytest.raises(InputError, match=instead):
            ggml.encode(methods.quantize(torch.randn(4, columns), format, format.method))


def test_damaged_bytes_are_refused():
    data = random_blocks("Q4_0")
    with pytest.raises(InputError, match="takes"):
        ggml.decode(data[:, 1:], "Q4_0", (7, 160))
    data[3, 18 : 18 + 2] = torch.tensor([float("nan")], dtype=torch.float16).view(torch.uint8)
    with pytest.raises(InputError, match="row 3"):
        ggml.decode(data, "Q4_0", (7, 160))


@pytest.mark.parametrize("name", ggml.FLOATS)
def test_floating_point_is_stored_as_gguf_stores_it(name):
    tensor = torch.randn(3, 40)
    data = ggml.encode_float(tensor, name)
    kind = gguf.GGMLQuantizationType[name]
    assert np.array_equal(
        data.numpy().view(np.uint8), gguf.quants.quantize(tensor.numpy(), kind).view(np.uint8)
    )
    assert torch.equal(ggml.decode_float(data, name, (3, 40)), tensor.to(ggml.FLOATS[name]))


def test_a_value_beyond_float16_is_refused():
    with pytest.raises(InputError, match="BF16"):
        ggml.encode_float(torch.tensor([[1.0, 1e5]]), "F16")


@pytest.mark.parametrize("name", TYPES)
def test_a_weight_without_data_gives_the_shape_of_the_bytes(name):
    format = ggml.FORMATS[name]
    parts = {
        part: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for part, (dtype, shape) in format.layout(6, 512).items()
    }
    data = ggml.encode(QuantizedTensor(format, (6, 512), codebook=format.fixed, **parts))
    assert data.is_meta and data.shape == (6, ggml.row_bytes(name, 512))

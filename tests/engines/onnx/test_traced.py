"""Codes in MatMulNBits' layout: the same codes as the recipe's, read back by the operator's definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore import recipes
from qcore.base.errors import InputError
from qcore.engines.onnx.traced import Blocks, NBitsEmbedding, block_size
from qcore.formats.packing import unpack
from qcore.quantization import methods


def by_definition(weight: Blocks) -> torch.Tensor:
    """Return the weight (N, K) by the definition of com.microsoft.MatMulNBits, number by number."""
    rows, columns = weight.shape
    values = torch.empty(rows, columns)
    per_byte = 8 // weight.bits
    for row in range(rows):
        for column in range(columns):
            block, place = divmod(column, weight.size)
            byte = int(weight.codes[row, block, place // per_byte])
            code = byte >> (place % per_byte * weight.bits) & (2**weight.bits - 1)
            zero = 2 ** (weight.bits - 1)
            if weight.zero_point is not None:
                byte = int(weight.zero_point[row, block // per_byte])
                zero = byte >> (block % per_byte * weight.bits) & (2**weight.bits - 1)
            values[row, column] = (code - zero) * weight.scale[row, block]
    return values


@pytest.mark.parametrize(
    "name",
    [
        "int4-g32",
        "int4-g16-sym",
        "int4-g64-dq",
        "int8",
        "int8-g32",
        "int3-g32",
        "int2",
        "int4-g48",
        "int4-g512",
    ],
)
@settings(max_examples=4, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(17, 150), seed=st.integers(0, 99))
def test_the_operators_definition_gives_the_recipes_weights(name, rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    quantized = methods.quantize(weight, recipes.parse(name).weights, "rtn")
    stored = Blocks(quantized)
    assert torch.equal(by_definition(stored), quantized.dequantize())
    codes = unpack(stored.codes, stored.bits, stored.size).flatten(1)[:, :columns]
    assert torch.equal(codes, quantized.unpacked_codes())
    assert torch.equal(NBitsEmbedding(stored)(torch.arange(rows)), quantized.dequantize())


def test_onnx_runtime_multiplies_by_those_weights(tmp_path):
    """The operator itself, on a graph of one node."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime import InferenceSession

    quantized = methods.quantize(torch.randn(24, 80), recipes.parse("int4-g32").weights, "rtn")
    stored = Blocks(quantized)
    parts = {"codes": stored.codes, "scale": stored.scale, "zero_point": stored.zero_point}
    node = helper.make_node(
        "MatMulNBits",
        ["x", *parts],
        ["y"],
        domain="com.microsoft",
        K=80,
        N=24,
        bits=stored.bits,
        block_size=stored.size,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 80])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 24])],
        [numpy_helper.from_array(part.numpy(), name) for name, part in parts.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "one.onnx")
    x = np.random.default_rng(0).standard_normal((5, 80), dtype=np.float32)
    (found,) = InferenceSession(str(tmp_path / "one.onnx")).run(None, {"x": x})
    assert np.abs(found - x @ quantized.dequantize().numpy().T).max() < 1e-5


def test_blocks_are_as_large_as_they_can_be():
    wanted = {
        (576, None): 64,
        (1536, None): 256,
        (576, 64): 64,
        (576, 96): 32,
        (77, None): 32,
        (4096, 512): 256,
    }
    assert {key: block_size(*key) for key in wanted} == wanted
    with pytest.raises(InputError, match="multiples of 16"):
        block_size(64, 8)


def test_a_table_of_values_is_refused():
    quantized = methods.quantize(torch.randn(4, 64), recipes.parse("nf4-g64").weights, "rtn")
    with pytest.raises(InputError, match="supports integer grids only"):
        Blocks(quantized)

"""The kernels for GPUs, on a simulated one (`tests/accelerator.py`).

There the operators that only a GPU has are PyTorch's own versions for the CPU, which define the same
arithmetic in another layout, and bitsandbytes' operator by its own version for the CPU. So shapes, dtypes,
the order of codes and the arithmetic of scales and offsets are tested here; the GPU's kernels are not. Their
signatures and result shapes are those that PyTorch registers for fake tensors on "cuda".
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from qcore import recipes
from qcore.kernels import dispatch, gpu
from qcore.layers.modules import QuantEmbedding, QuantLinear
from qcore.quantization import methods
from tests.accelerator import simulated

aten = torch.ops.aten


def quantized(name: str, rows: int = 24, columns: int = 320):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    format = recipes.parse(name).weights
    return methods.quantize(weight, format, format.method)


CASES = {  # recipe: (class, relative error of the product)
    "int4-g32": (gpu.Int4, 6e-3),
    "int4-g64-sym": (gpu.Int4, 6e-3),
    "int4-g96-dq": (gpu.Int4, 6e-3),
    "int3-g64": (gpu.Int4, 6e-3),
    "int2-g32": (gpu.Int4, 6e-3),
    "gguf-q4_0": (gpu.Int4, 6e-3),
    "gguf-q4_1": (gpu.Int4, 6e-3),
    "int8": (gpu.Int8, 1e-6),
    "nf4-g64": (gpu.FourBit, 1e-6),
    "nf4-g32-dq": (gpu.FourBit, 1e-6),
    "fp4-g64": (gpu.FourBit, 1e-6),
}


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (kind is gpu.FourBit))
        for name, (kind, _) in CASES.items()
    ],
)
def test_product_is_that_of_the_dequantized_weight(name, tokens):
    """bfloat16 has 8 bits: activations, scales and offsets are each rounded by up to 2 ** -9."""
    kind, bound = CASES[name]
    weight, bias = quantized(name), torch.randn(24)
    x = torch.randn(tokens, 320, generator=torch.Generator().manual_seed(2))
    expected = x.double() @ weight.dequantize().double().T + bias
    with simulated():
        there = gpu.moved(weight, "cuda")
        packed = dispatch.packed(there, "int16")
        assert type(packed) is kind and packed.device.type == "cuda"
        assert kind.WORDS in dispatch.explain(packed, "int16")
        y = dispatch.linear(x.to("cuda"), packed, bias.to("cuda"), "int16").cpu()
        back = packed.unpack()
        assert back.codes.device.type == "cuda"
        assert all(
            torch.equal(part.cpu(), weight.parts()[part_name]) for part_name, part in back.parts().items()
        )
    assert y.dtype == torch.float32
    error = (y.double() - expected).norm() / expected.norm()
    assert error < bound


@pytest.mark.parametrize(
    ("name", "activations", "why"),
    [
        ("int4-g32", "fp32", "reads them exactly"),
        ("int4-g32", "int8", "8 bits per token"),
        ("int4-g16", "int16", "groups of 32 inputs or more, not of 16"),
        ("int8-g32", "int16", "no kernel on cuda:0 reads the format int8-g32"),
        ("int6-g64", "int16", "no kernel on cuda:0 reads the format int6-g64"),
        ("kmeans4-g32", "int16", "no kernel on cuda:0 reads the format kmeans4-g32"),
        ("nf4-g96", "int16", "whole groups of 32 to 4096"),
        ("int8", None, "rows are looked up"),
    ],
)
def test_other_weights_run_the_reference_and_say_why(name, activations, why):
    if name == "int6-g64":
        from qcore.formats.uniform import Uniform

        weight = methods.quantize(torch.randn(8, 320), Uniform(6, 64, False), "rtn")
    else:
        weight = quantized(name)
    with simulated():
        there = gpu.moved(weight, "cuda")
        assert dispatch.packed(there, activations) is there
        assert why in gpu.kernel_of(there, activations).reason
        if activations:
            assert why in dispatch.explain(there, activations)
            assert (
                dispatch.linear(torch.randn(1, 320).to("cuda"), there, None, activations).device.type
                == "cuda"
            )


def test_k_quants_of_four_bits_take_the_int4_kernel():
    weight, x = quantized("gguf-q4_k", columns=512), torch.randn(3, 512)
    expected = x.double() @ weight.dequantize().double().T
    with simulated():
        packed = dispatch.packed(gpu.moved(weight, "cuda"), "int16")
        assert type(packed) is gpu.Int4
        y = packed.linear(x.to("cuda"), None).cpu().double()
    assert (y - expected).norm() / expected.norm() < 6e-3


def test_an_older_gpu_runs_the_reference(monkeypatch):
    with simulated():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        there = gpu.moved(quantized("int4-g32"), "cuda")
        assert "compute capability 8.0" in gpu.kernel_of(there, "int16").reason


def test_a_layer_holds_its_weight_once_and_restores_it():
    weight = quantized("int4-g32")
    layer, rows = QuantLinear(weight, None, "int16"), QuantEmbedding(weight)
    x = torch.randn(2, 320)
    with simulated():
        layer, rows = layer.to("cuda"), rows.to("cuda")
        y = layer(x.to("cuda")).cpu()
        held = [buffer for buffer in layer.buffers() if buffer is not None]
        assert held == [] and layer.packed.nbytes == 24 * 1024 // 2 + 24 * 1024 // 32 * 4
        assert layer.reason_for_reference() is not None  # of the native step, which is for the CPU
        ids = torch.tensor([3, 1])
        assert torch.equal(rows(ids.to("cuda")).cpu(), weight.dequantize()[ids])
        saved = {name: part.cpu() for name, part in layer.state_dict().items()}
        assert layer.packed is None
        assert torch.equal(layer(x.to("cuda")).cpu(), y)  # packed again
    assert all(torch.equal(part, weight.parts()[name]) for name, part in saved.items())


def test_shapes_and_dtypes_are_those_that_pytorch_registers_for_cuda():
    with FakeTensorMode(), torch.device("cuda"):
        codes = torch.empty(24, 512, dtype=torch.uint8)
        tiles = aten._convert_weight_to_int4pack(codes, gpu.INNER_TILES)
        x, scales = torch.empty(2, 1024, dtype=torch.bfloat16), torch.empty(32, 24, 2, dtype=torch.bfloat16)
        y = aten._weight_int4pack_mm(x, tiles, 32, scales)
        assert (tiles.shape, tiles.dtype) == ((3, 8, 32, 4), torch.int32)
        assert (y.shape, y.dtype, y.device.type) == ((2, 24), torch.bfloat16, "cuda")
        eight = aten._weight_int8pack_mm(
            torch.empty(2, 320), torch.empty(24, 320, dtype=torch.int8), torch.empty(24)
        )
        assert (eight.shape, eight.dtype) == ((2, 24), torch.float32)

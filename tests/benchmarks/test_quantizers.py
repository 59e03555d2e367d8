"""Peers of the quality benchmark: stored sizes and dequantized values are exact; llama.cpp's importance
matrix matches the layers' inputs."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import tiny
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants

from benchmarks import gguf_writer, imatrix
from benchmarks.quantizers import Job, Stored, check_layers, linears, llamacpp, own, packed, put
from qcore.base.errors import RunError


def job(model: torch.nn.Module, item: str, scratch: Path) -> Job:
    return Job(SimpleNamespace(model=model), item, 1, scratch, None, lambda text: None)


def test_the_baseline_counts_32_bits_and_a_recipe_what_its_ledger_counts(tmp_path):
    model = tiny.model("llama")
    expected = frozenset(linears(model))
    assert own.quantize(job(model, "fp32", tmp_path)).bits_per_weight == 32
    stored = check_layers(own.quantize(job(model, "int4-g32-sym", tmp_path)), expected)
    assert stored.bits_per_weight == 4 + 16 / 32


def test_the_same_layers_or_no_comparison():
    whole = frozenset({"a", "b"})
    for layers, what in (
        ({"a"}, "1 were left out, such as b"),
        ({"a", "b", "c"}, "1 were quantized as well, such as c"),
    ):
        with pytest.raises(RunError, match=what):
            check_layers(Stored(1, 1, frozenset(layers)), whole)


def test_a_weight_that_came_back_broken_is_refused():
    layer = torch.nn.Linear(4, 3)
    with pytest.raises(RunError, match=r"\(4, 3\), not \(3, 4\)"):
        put(layer, torch.zeros(4, 3))
    with pytest.raises(RunError, match="not finite"):
        put(layer, torch.full((3, 4), torch.nan))


# -- llama.cpp -----------------------------------------------------------------------------------------------


def test_the_importance_matrix_reads_back_in_c_and_ends_with_an_empty_name():
    class Data(ctypes.Structure):  # as llama.h declares llama_model_imatrix_data
        _fields_ = [
            ("name", ctypes.c_char_p),
            ("data", ctypes.POINTER(ctypes.c_float)),
            ("size", ctypes.c_size_t),
        ]

    values = {"blk.0.attn_q.weight": torch.rand(64), "blk.0.ffn_down.weight": torch.rand(128)}
    array = imatrix.as_c(values, Data)
    assert {entry.name.decode(): entry.data[: entry.size] for entry in array[:2]} == {
        name: each.tolist() for name, each in values.items()
    }
    assert array[2].name is None and len(array) == 3


def written(model: torch.nn.Module, path: Path, kind: GGMLQuantizationType) -> None:
    """Write a GGUF file with all matrices in the blocks as `kind`, by the package's own quantizer."""
    writer = GGUFWriter(str(path), "llama")
    for name, tensor in gguf_writer.tensors(model):
        values = tensor.detach().contiguous().numpy()
        if name.startswith("blk.") and values.ndim == 2:
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_float_gguf_gives_the_very_weights_back(tmp_path):
    model = tiny.model("llama")
    before = {name: layer.weight.detach().clone() for name, layer in linears(model).items()}
    written(model, tmp_path / "f32.gguf", GGMLQuantizationType.F32)
    for layer in linears(model).values():
        put(layer, torch.zeros_like(layer.weight))
    stored = llamacpp.take(model, tmp_path / "f32.gguf")
    assert stored.bits_per_weight == 32 and stored.layers == frozenset(before)
    for name, layer in linears(model).items():
        torch.testing.assert_close(layer.weight, before[name], rtol=0, atol=0)


def test_a_block_format_is_counted_and_widened_as_it_is_stored(tmp_path):
    model = tiny.model("llama")
    before = {name: layer.weight.detach().clone() for name, layer in linears(model).items()}
    written(model, tmp_path / "small.gguf", GGMLQuantizationType.Q8_0)
    stored = llamacpp.take(model, tmp_path / "small.gguf")
    assert stored.bits_per_weight == 8 + 16 / 32 and stored.details["types"] == {"Q8_0": 1.0}
    for name, layer in linears(model).items():
        whole = before[name].view(-1, 32)
        scale = torch.from_numpy(
            (whole.abs().amax(1).numpy() / 127).astype(numpy.float16).astype(numpy.float32)
        )
        assert (
            (layer.weight.detach().view(-1, 32) - whole).abs() <= 0.51 * scale[:, None] + 1e-3 * whole.abs()
        ).all(), name


# -- the layout that AutoGPTQ introduced ---------------------------------------------------------------------


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes (R, C) into int32 words, literally: word i holds codes 32/b · i …, the first in the lowest
    bits."""
    count, words = 32 // bits, []
    for first in range(0, len(codes), count):
        word = sum(codes[first + i].long() << (bits * i) for i in range(count))
        words.append(torch.where(word >= 2**31, word - 2**32, word).to(torch.int32))
    return torch.stack(words)


@pytest.mark.parametrize("offset", [0, 1], ids=["second version", "first version"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ordered", [False, True], ids=["straight", "act order"])
def test_packed_codes_are_widened_to_scale_times_code_minus_zero(bits, offset, ordered):
    generator = torch.Generator().manual_seed(bits)
    n, k, group = 32, 64, 16
    codes = torch.randint(0, 2**bits, (k, n), generator=generator)
    zeros = torch.randint(offset, 2**bits, (k // group, n), generator=generator)
    scales = torch.rand(k // group, n, generator=generator).half()
    order = torch.arange(k) // group
    order = order[torch.randperm(k, generator=generator)] if ordered else order
    parts = {
        "qweight": pack(codes, bits),
        "qzeros": pack((zeros - offset).T, bits).T,
        "scales": scales,
        "g_idx": order.int(),
    }
    expected = (scales.float()[order] * (codes - zeros[order])).T
    torch.testing.assert_close(
        packed.widen(parts, packed.Layout(bits, group, offset)), expected, rtol=0, atol=0
    )
    size = k * n * bits // 8 + (k // group) * n * bits // 8 + (k // group) * n * 2
    assert packed.nbytes(parts, group) == size + (4 * k if ordered else 0)


def test_a_layout_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"quantization_config": {"checkpoint_format": "marlin", "bits": 4, "group_size": 64}}'
    )
    with pytest.raises(RunError, match="marlin"):
        packed.Layout.of(tmp_path)


def test_a_layer_that_a_peer_left_alone_or_took_as_well_is_an_error(tmp_path):
    from safetensors.torch import save_file

    model = tiny.model("llama")
    config = '{"quantization_config": {"checkpoint_format": "gptq_v2", "bits": 4, "group_size": 32}}'
    (tmp_path / "config.json").write_text(config)
    tensors = {}
    for name, layer in linears(model).items():
        n, k = layer.weight.shape
        stem = name.removesuffix("weight")
        tensors[f"{stem}qweight"] = torch.zeros(k // 8, n, dtype=torch.int32)
        tensors[f"{stem}qzeros"] = torch.zeros(k // 32, n // 8, dtype=torch.int32)
        tensors[f"{stem}scales"] = torch.ones(k // 32, n, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    assert packed.take(model, tmp_path).bits_per_weight == 4 + (16 + 4) / 32
    save_file(
        tensors | {"lm_head.qweight": torch.zeros(1, 1, dtype=torch.int32)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(RunError, match="1 more layers as codes, such as lm_head.qweight"):
        packed.take(model, tmp_path)
    save_file(dict(list(tensors.items())[3:]), tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="does not hold model.layers.0"):
        packed.take(model, tmp_path)

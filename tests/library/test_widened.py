"""Originals stored in 8-bit floats or MXFP4 are originals for recipes: their values, dequantized once."""

import json

import foreign_models
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import qcore
from qcore import library
from qcore.base.errors import InputError, TooLargeError
from qcore.library import widened
from qcore.recipes import parse
from qcore.verbs import quantize

IDS = torch.arange(40)[None]


def write(kind: str, tmp_path):
    folder = tmp_path / kind
    if kind == "mxfp4":
        return foreign_models.write_mxfp4(folder)
    original = tiny.checkpoint("llama", tmp_path / "original")
    foreign_models.write_fp8(original, folder)
    if kind == "fp8 per tensor":
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            tensors[name.removesuffix("_inv")] = tensors.pop(name).reshape(())
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        foreign_models.set_quantization(folder, {"quant_method": "fp8", "activation_scheme": "static"})
    return folder


@pytest.mark.parametrize("kind", ["fp8", "fp8 per tensor", "mxfp4"])
@torch.no_grad()
def test_recipes_start_from_the_values_of_the_file(kind, tmp_path):
    folder = write(kind, tmp_path)
    stored, plain = qcore.load(str(folder)), library.load(library.resolve(folder))
    assert plain.ledger is None and plain.recipe is None
    assert f"Stored as {kind.split()[0]} and dequantized" in plain.checkpoint.description
    torch.testing.assert_close(plain.model(IDS).logits, stored.model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert {info.dtype for info in plain.checkpoint.tensors.values()} == {"F32"}
    for stream in (False, True):
        made = tmp_path / f"made {stream}"
        quantize.run(str(folder), parse("int8"), made, stream=stream, progress=lambda *_: None)
        close = torch.nn.functional.cosine_similarity(
            qcore.load(str(made)).model(IDS).logits, plain.model(IDS).logits, dim=-1
        )
        assert close.min() > 0.99


@pytest.mark.parametrize("kind", ["fp8", "fp8 per tensor", "mxfp4"])
def test_the_outline_is_that_of_the_values(kind, tmp_path):
    """A plan showed the stored model as it is, and no recipe."""
    folder = write(kind, tmp_path)
    found, made = library.outline(folder), library.resolve(folder)
    assert not found.is_quantized and "dequantized when used" in found.description
    shapes = [{name: (each.dtype, each.shape) for name, each in one.tensors.items()} for one in (found, made)]
    assert shapes[0] == shapes[1] and found.nbytes == made.nbytes
    plans = [qcore.plan(one, ["int8", "int4-g32"]).rows for one in (str(folder), found, made)]
    assert [row.stored_bytes for row in plans[0]] == [row.stored_bytes for row in plans[2]]


def test_values_that_bf16_holds_are_stored_in_it(tmp_path):
    folder = write("mxfp4", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: each.bfloat16() if each.is_floating_point() else each for name, each in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    for read in (library.resolve, library.outline):
        assert {info.dtype for info in read(folder).tensors.values()} == {"BF16"}


def test_a_folder_is_dequantized_once_and_its_small_files_come_along(tmp_path):
    folder = write("fp8", tmp_path)
    (folder / "LICENSE").write_text("Do as you like.")
    first = library.resolve(folder)
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = library.resolve(folder)
    assert again.folder == first.folder and again.digest == first.digest
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == written
    assert (first.folder / "LICENSE").read_text() == "Do as you like."
    assert "quantization_config" not in json.loads((first.folder / "config.json").read_text())


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(widened, "available_bytes", lambda: 1000)
    monkeypatch.setattr("qcore.library.foreign.values", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(TooLargeError, match="Dequantizing .* GiB are available. Use a version"):
        library.resolve(write("fp8", tmp_path))


def test_codes_without_scales_or_of_another_method_are_refused(tmp_path):
    folder = write("fp8", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: each for name, each in tensors.items() if "scale" not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match="not all that a weight of fp8 consists of"):
        library.resolve(folder)
    foreign_models.set_quantization(folder, {"quant_method": "mxfp4"})
    with pytest.raises(InputError, match="names mxfp4, but no weight is stored in that form"):
        library.resolve(folder)
    foreign_models.set_quantization(folder, {"quant_method": "gptq"})
    with pytest.raises(InputError, match="already quantized .gptq."):
        library.resolve(folder)

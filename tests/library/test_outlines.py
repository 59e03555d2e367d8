"""Outlines from headers alone: the same tensors and weights that fetching or converting the models would
give."""

import json
import shutil
import struct

import fakehub
import gguf
import gguf_models
import pytest
import tiny
from transformers import AutoModelForCausalLM

from qcore import library
from qcore.base.errors import InputError, UnavailableError
from qcore.library import outlines
from qcore.models import gguf_header


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with fakehub.serve() as server:
        fakehub.point_library_at(monkeypatch, server.url, tmp_path / "cache")
        yield server


def shapes(checkpoint):
    return {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()}


def sharded(folder, kind="llama"):
    tiny.model(kind).save_pretrained(folder, max_shard_size="60KB")
    tiny.tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_a_model_on_the_hub_is_outlined_without_its_weights(hub, originals, kind):
    hub.repositories["owner/tiny"] = originals[kind]
    found = library.outline("owner/tiny")
    assert not list(found.folder.glob("*.safetensors"))
    assert hub.sent < (originals[kind] / "model.safetensors").stat().st_size
    local = library.resolve(originals[kind])
    assert (
        shapes(found) == shapes(local)
        and found.parameters == local.parameters == tiny.model(kind).num_parameters()
    )
    assert (found.nbytes, found.revision, found.source) == (local.nbytes, fakehub.COMMIT, "hub")


def test_shards_on_the_hub_are_read_one_by_one(hub, tmp_path):
    hub.repositories["owner/tiny"] = sharded(tmp_path / "tiny")
    found = library.outline("owner/tiny")
    assert (
        shapes(found) == shapes(library.resolve(tmp_path / "tiny"))
        and found.parameters == tiny.model("llama").num_parameters()
    )


@pytest.mark.parametrize("first", [64, 1 << 17], ids=["long header", "short header"])
def test_a_server_that_ignores_ranges_is_cut_off(hub, originals, monkeypatch, first):
    monkeypatch.setattr(outlines, "_FIRST", first)
    hub.ranges = False
    hub.repositories["owner/tiny"] = originals["llama"]
    assert library.outline("owner/tiny").parameters == tiny.model("llama").num_parameters()


def test_a_long_header_takes_a_second_read(hub, originals, monkeypatch):
    monkeypatch.setattr(outlines, "_FIRST", 64)
    hub.repositories["owner/tiny"] = originals["llama"]
    assert library.outline("owner/tiny").parameters == tiny.model("llama").num_parameters()
    assert sum(path.endswith("model.safetensors") for _, path in hub.requests) == 2


@pytest.mark.row("20")
def test_a_hub_that_says_no_is_told_in_the_same_words(hub, originals, tmp_path):
    with pytest.raises(InputError, match="There is no model owner/missing"):
        library.outline("owner/missing")
    hub.repositories["owner/gated"] = originals["llama"]
    hub.answers["owner/gated", "files"] = (403, {"X-Error-Code": "GatedRepo"})
    with pytest.raises(InputError, match="gated"):
        library.outline("owner/gated")
    hub.repositories["owner/damaged"] = shutil.copytree(originals["llama"], tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(InputError, match="not a valid safetensors file"):
        library.outline("owner/damaged")
    hub.repositories["owner/limited"] = originals["gpt2"]
    hub.answers["owner/limited", "info"] = (429, {})
    with pytest.raises(UnavailableError, match="rate limit of the hub"):
        library.outline("owner/limited")


def test_a_header_that_contradicts_the_config_is_refused(hub, originals, tmp_path):
    folder = shutil.copytree(originals["llama"], tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1000}))
    hub.repositories["owner/odd"] = folder
    with pytest.raises(InputError, match="1000 layers"):
        library.outline("owner/odd")


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0], ids=["fp32", "Q8_0"])
def test_a_gguf_file_is_outlined_as_it_would_be_converted(tmp_path, kind):
    path = tmp_path / "tiny.gguf"
    gguf_models.write(path, AutoModelForCausalLM.from_config(gguf_models.CONFIG), kind)
    found = library.outline(path)
    converted = library.resolve(path)
    assert (
        found.parameters == converted.parameters
        and found.nbytes == converted.nbytes
        and shapes(found) == shapes(converted)
    )
    assert ("quantized as Q8_0" in found.description) == (kind is not None) and "on disk" in found.description


def test_damaged_gguf_files_are_refused(tmp_path):
    whole = tmp_path / "whole.gguf"
    gguf_models.write(whole, AutoModelForCausalLM.from_config(gguf_models.CONFIG))
    content = whole.read_bytes()
    for i, text in enumerate((content[:200], content[:24] + struct.pack("<Q", 1 << 60) + content[32:])):
        path = tmp_path / f"damaged-{i}.gguf"
        path.write_bytes(text)
        gguf_header.check(path)
        with pytest.raises(InputError, match="damaged or cut short"):
            gguf_header.read(path)


def test_the_header_of_a_gguf_file_places_every_tensor(tmp_path):
    path = tmp_path / "tiny.gguf"
    model = AutoModelForCausalLM.from_config(gguf_models.CONFIG)
    gguf_models.write(path, model, gguf.GGMLQuantizationType.Q8_0)
    found = {tensor.name: tensor for tensor in gguf_header.read(path).tensors}
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert {name: (tensor.start, tensor.nbytes, tensor.type_name) for name, tensor in found.items()} == {
        name: (tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name) for name, tensor in theirs.items()
    }


@pytest.mark.parametrize(
    "offset, message",
    [(16, "multiple of 32"), (1 << 40, "but the file ends"), (0, "overlaps")],
    ids=["unaligned", "outside", "overlapping"],
)
def test_tensors_of_a_gguf_file_at_impossible_places(tmp_path, offset, message):
    path = tmp_path / "tiny.gguf"
    gguf_models.write(path, AutoModelForCausalLM.from_config(gguf_models.CONFIG))
    content, name = path.read_bytes(), b"blk.1.ffn_down.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8 + 4  # behind dimensions, shape and type
    path.write_bytes(content[:place] + struct.pack("<Q", offset) + content[place + 8 :])
    with pytest.raises(InputError, match=message):
        gguf_header.read(path)


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_what_another_library_quantized_is_looked_at_as_it_is(hub, originals, tmp_path, where):
    folder = shutil.copytree(originals["llama"], tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    hub.repositories["owner/gptq"] = folder
    found = library.outline("owner/gptq" if where == "hub" else folder)
    assert found.is_quantized and library.is_foreign(found) and "gptq" in found.description
    assert (
        found.parameters == tiny.model("llama").num_parameters()
        and found.nbytes == library.resolve(originals["llama"]).nbytes
    )
    with pytest.raises(InputError, match="already quantized"):
        library.resolve(folder)

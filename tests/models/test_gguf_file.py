"""GGUF files, written here with the gguf library from a tiny model, come back as that model."""

import shutil
import struct

import gguf
import pytest
import torch
from gguf_models import CONFIG, write
from transformers import AutoModelForCausalLM

from qcore import library
from qcore.base.errors import InputError
from qcore.models import gguf_file, gguf_header
from tests.fuzz.samples import gguf_model


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).eval()


def test_a_float_file_is_the_model_bit_by_bit(model, tmp_path):
    write(tmp_path / "tiny.gguf", model)
    loaded = library.load(tmp_path / "tiny.gguf")
    ids = torch.arange(30)[None]
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.checkpoint.source == "gguf"
    assert loaded.checkpoint.description == "A GGUF file in floating point, converted to fp32."
    assert "quantization_config" not in loaded.checkpoint.config
    assert loaded.tokenizer("abcd")["input_ids"][-2:] == [60, 61]


@pytest.mark.parametrize(
    "kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1], ids=lambda kind: kind.name
)
def test_a_quantized_file_is_dequantized_exactly_and_said_so(model, tmp_path, kind):
    held = write(tmp_path / "tiny.gguf", model, kind)
    checkpoint = library.resolve(tmp_path / "tiny.gguf")
    assert f"quantized as {kind.name} and dequantized to fp32" in checkpoint.description
    loaded = library.load(checkpoint).model
    for name in (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
    ):
        assert torch.equal(loaded.get_parameter(name), torch.as_tensor(held[name])), name


def test_it_is_converted_once(model, tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", model)
    first = library.resolve(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_file, "convert", lambda *args: pytest.fail("converted again"))
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "copy.gguf")
    assert library.resolve(tmp_path / "copy.gguf").folder == first.folder


def test_nothing_half_written_stays(model, tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", model)

    def fail(*args):
        raise InputError("no tokenizer")

    monkeypatch.setattr(gguf_file, "load_tokenizer", fail)
    with pytest.raises(InputError, match="no tokenizer"):
        library.resolve(tmp_path / "tiny.gguf")
    assert [
        path.name for path in (tmp_path / "home" / "models").iterdir() if not path.name.endswith(".lock")
    ] == []


def test_no_gguf_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + b"\0" * 40)
    with pytest.raises(InputError, match="not a GGUF file"):
        library.resolve(tmp_path / "x.gguf")
    with pytest.raises(InputError, match="absent.gguf cannot be read"):
        library.resolve(tmp_path / "absent.gguf")


@pytest.mark.parametrize(
    "version, tensors, entries, message",
    [
        (1, 1, 1, "version 1"),
        (3 << 24, 1, 1, "version"),
        (3, 0, 1, "declares 0 tensors"),
        (3, 1 << 60, 1, "declares"),
        (3, 1, 1 << 60, "declares"),
    ],
    ids=["old", "big-endian", "none", "tensors", "entries"],
)
def test_impossible_starts(tmp_path, version, tensors, entries, message):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"\0" * 100)
    with pytest.raises(InputError, match=message):
        library.resolve(tmp_path / "x.gguf")


@pytest.mark.parametrize("keep", [30, 200, 1500, -4000])
def test_truncated_files(model, tmp_path, keep):
    write(tmp_path / "tiny.gguf", model)
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[:keep])
    with pytest.raises(InputError, match="tiny.gguf"):
        library.resolve(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("part", [1, 2])
def test_one_part_of_several(part, model, tmp_path):
    write(tmp_path / f"tiny-0000{part}-of-00003.gguf", model)
    with pytest.raises(InputError, match=r"is one of 3 parts\. Merge them"):
        library.resolve(tmp_path / f"tiny-0000{part}-of-00003.gguf")


@pytest.mark.parametrize("name", ["mixture-of-experts.Q4_0", "tiny-00001-of-00001", "best-of-00002-models"])
def test_names_that_only_look_like_a_part(name, model, tmp_path):
    write(tmp_path / f"{name}.gguf", model)
    gguf_header.check(tmp_path / f"{name}.gguf")


def test_texts_that_are_not_utf8_are_shown_all_the_same(tmp_path):
    """Found by `python -m tests.fuzz gguf`: the name of the architecture was an error of Python."""

    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_model().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0ll\xd2ma", 1))
    gguf_header.check(path)
    assert gguf_header.read(path).architecture == "ll\ufffdma"


def test_a_tensor_without_dimensions_is_refused(tmp_path):
    """Found by `python -m tests.fuzz gguf`: the embedding had no number of rows, an error of Python."""
    path = tmp_path / "model.gguf"
    name = b"token_embd.weight"
    path.write_bytes(gguf_model().replace(name + struct.pack("<I", 2), name + struct.pack("<I", 0), 1))
    gguf_header.check(path)
    with pytest.raises(InputError, match="a tensor of 0 dimensions"):
        gguf_header.read(path)

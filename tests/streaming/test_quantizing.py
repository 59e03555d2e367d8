"""Streamed quantization writes what quantizing in memory and saving writes, and goes on where it was
stopped."""

import filecmp
import json

import pytest
import tiny
import torch
from safetensors.torch import load_file

from qcore import library, recipes
from qcore.base.errors import InputError
from qcore.library import safetensors
from qcore.quantization import convert
from qcore.streaming import quantizing

SHARD = 60_000  # bytes, so that a tiny model takes several


def stored(folder) -> dict[str, torch.Tensor]:
    """Every tensor of every file."""
    found = {}
    for file in folder.glob("*.safetensors"):
        part = load_file(file)
        assert not found.keys() & part.keys()
        found |= part
    return found


def in_memory(checkpoint, recipe, folder):
    loaded = library.load(checkpoint)
    ledger = convert.quantize(loaded.model, recipe)
    safetensors.save(loaded.model, loaded.tokenizer, recipe, ledger, folder, origin=checkpoint.origin)


@pytest.mark.parametrize("recipe", ["int4-g64", "nf4-g64-dq", "kmeans4", "int4-g32-head8", "int4-g64-hqq"])
@pytest.mark.parametrize("config", tiny.CONFIGS)
def test_every_byte_is_that_of_the_model_in_memory(config, recipe, tmp_path):
    recipe = recipes.parse(recipe)
    tiny.checkpoint(config, tmp_path / "model")
    checkpoint = library.resolve(tmp_path / "model")
    in_memory(checkpoint, recipe, tmp_path / "whole")
    ledger = quantizing.quantize(checkpoint, recipe, tmp_path / "streamed", shard_bytes=SHARD)
    expected, got = stored(tmp_path / "whole"), stored(tmp_path / "streamed")
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == got[name].dtype and torch.equal(tensor, got[name]), name
    about = [json.loads((tmp_path / name / "qcore.json").read_text()) for name in ("whole", "streamed")]
    assert {**about[0], "sha256": None} == {**about[1], "sha256": None} and about[1][
        "ledger"
    ] == ledger.to_dict()
    for file in (tmp_path / "whole").iterdir():
        assert file.name in ("qcore.json", "model.safetensors") or filecmp.cmp(
            file, tmp_path / "streamed" / file.name, shallow=False
        )
    one, other = (library.load(library.resolve(tmp_path / name)).model for name in ("whole", "streamed"))
    ids = torch.arange(20)[None]
    assert torch.equal(one(ids).logits, other(ids).logits)


@pytest.mark.row("31")
def test_a_stopped_run_goes_on_at_the_next_shard(tmp_path):
    recipe = recipes.parse("int4-g64")
    tiny.checkpoint("llama", tmp_path / "model")
    checkpoint = library.resolve(tmp_path / "model")
    quantizing.quantize(checkpoint, recipe, tmp_path / "expected", shard_bytes=SHARD)

    def stop(done: int, total: int, phrase: str) -> None:
        if list(tmp_path.glob(".out.streaming-*/*.safetensors")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantizing.quantize(checkpoint, recipe, tmp_path / "out", shard_bytes=SHARD, progress=stop)
    (work,) = tmp_path.glob(".out.streaming-*")
    kept = {file.name: file.stat().st_ino for file in work.glob("*.safetensors")}
    assert kept and not (tmp_path / "out").exists()
    (work / ".model-00001-of-00009.safetensors.0a.partial").touch()  # of a writer that was killed
    quantizing.quantize(checkpoint, recipe, tmp_path / "out", shard_bytes=SHARD)
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert all(files[name].stat().st_ino == inode for name, inode in kept.items()) and not work.exists()
    assert files.keys() == {file.name for file in (tmp_path / "expected").iterdir()}
    for name, file in files.items():
        assert filecmp.cmp(file, tmp_path / "expected" / name, shallow=False), name


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("bnb-nf4", "another library's"),
        ("bf16", "does not quantize"),
        ("int4-g64-gptq", "reads calibration text"),
        ("rot-int4-g64-gptq", "text"),
    ],
)
def test_recipes_that_need_the_whole_model_are_refused(recipe, message, tmp_path):
    tiny.checkpoint("llama", tmp_path / "model")
    with pytest.raises(InputError, match=message):
        quantizing.quantize(library.resolve(tmp_path / "model"), recipes.parse(recipe), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))

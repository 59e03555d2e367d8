"""Folders on disk: what is read from them, and every way in which files, index and config can contradict each
other."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import tiny
import torch
from edits import edit, retensor
from safetensors.torch import load_file, save_file

from qcore import library
from qcore.base.errors import InputError
from qcore.models.checkpoint import INDEX, SINGLE, read_folder

EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


@pytest.fixture
def sharded(folder):
    """The same checkpoint in two shards with an index."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:10], names[10:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / SINGLE).unlink()
    return folder


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_what_a_checkpoint_says(originals, kind):
    checkpoint, model = library.resolve(originals[kind]), tiny.model(kind)
    assert checkpoint.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in load_file(originals[kind] / SINGLE).values())
    assert (checkpoint.source, checkpoint.revision, checkpoint.is_quantized) == ("folder", None, False)
    assert checkpoint.dtypes == ("F32",)
    assert checkpoint.config["model_type"] == tiny.CONFIGS[kind].model_type


def test_sharding_does_not_make_another_model(originals, sharded):
    single, split = library.resolve(originals["llama"]), library.resolve(sharded)
    assert split.digest == single.digest
    assert {tensor.file for tensor in split.tensors.values()} == {
        f"model-0000{i}-of-00002.safetensors" for i in (1, 2)
    }


def test_one_changed_tensor_makes_another_model(originals, folder):
    retensor(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(1.001))
    assert library.resolve(folder).digest != library.resolve(originals["llama"]).digest


def test_an_edit_between_the_samples_is_seen_by_the_stamp_alone(folder):
    """Unfinished work is stored under digest and stamp."""
    before = library.resolve(folder)
    stamp = before.stamp
    time.sleep(0.02)  # longer than a tick of the file system's clock
    tensor = before.tensors["model.embed_tokens.weight"]
    with (folder / SINGLE).open("r+b") as file:
        file.seek(tensor.start + tensor.nbytes // 4)
        file.write(b"\x00\x00\x80\x3f")
    after = library.resolve(folder)
    assert after.digest == before.digest, "if the digest sees it, the stamp is not needed"
    assert after.stamp != stamp and library.resolve(folder).stamp == after.stamp


@pytest.mark.row("44")
def test_on_a_public_server_no_copy_takes_the_place_of_a_model(originals, folder, monkeypatch):
    """Visitors share what is kept by digest, and a copy may hold another tokenizer, or other weights between
    the samples."""
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    copy, original = (
        read_folder(each, "them/model", "hub", "") for each in (folder, Path(originals["llama"]))
    )
    assert copy.digest != original.digest
    assert copy.digest == read_folder(folder, "them/model", "hub", "").digest


def test_a_stamp_of_files_that_are_gone(folder):
    checkpoint = library.resolve(folder)
    (folder / SINGLE).unlink()
    with pytest.raises(InputError, match="can no longer be read"):
        _ = checkpoint.stamp


@pytest.mark.row("44")
def test_the_key_of_shared_caches_sees_every_file_that_is_read(folder, tmp_path):
    """Before, caches had the digest as their only key, which is equal for a copy with another tokenizer."""
    before, copy = library.resolve(folder), tmp_path / "copy"
    shutil.copytree(folder, copy)
    other = library.resolve(copy)
    assert other.digest == before.digest and other.key != before.key == library.resolve(folder).key
    keys = {before.key}
    for name in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja", SINGLE):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        kept = path.read_bytes() if path.exists() else b"{}"
        path.write_bytes(kept + b" " * (name != SINGLE))
        os.utime(path, ns=(1, 1))
        keys.add(before.key)
    assert len(keys) == 5 and library.resolve(folder).digest == before.digest
    shutil.rmtree(folder)
    assert before.key not in keys, "a folder that is gone is another state, and no error"


def test_a_changed_config_makes_another_model(originals, folder):
    edit(folder / "config.json", lambda config: config | {"rms_norm_eps": 1e-3})
    assert library.resolve(folder).digest != library.resolve(originals["llama"]).digest


def test_links_as_the_hub_makes_them(folder, tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert library.resolve(snapshot).digest == library.resolve(folder).digest


# -- weights -------------------------------------------------------------------------------------------------


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="llama has no config.json"):
        library.resolve(folder)


def test_no_weights(folder):
    (folder / SINGLE).unlink()
    with pytest.raises(InputError, match="llama has no weights"):
        library.resolve(folder)


@pytest.mark.row("4")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
def test_pickled_weights_are_refused_and_never_opened(folder, name):
    (folder / SINGLE).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (folder / name).chmod(0)
    with pytest.raises(InputError, match=f"only pickled weights .{name}.*refuses"):
        library.resolve(folder)


def test_weights_under_another_name(folder):
    (folder / SINGLE).rename(folder / "weights.safetensors")
    with pytest.raises(InputError, match="rename it model.safetensors"):
        library.resolve(folder)


def test_no_tensors(folder):
    save_file({}, folder / SINGLE)
    with pytest.raises(InputError, match="hold no tensors"):
        library.resolve(folder)


def test_both_a_single_file_and_an_index(sharded, originals):
    shutil.copy(originals["llama"] / SINGLE, sharded)
    with pytest.raises(InputError, match="the weights are ambiguous"):
        library.resolve(sharded)


@pytest.mark.row("4")
@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", 5, None],
    ids=str,
)
def test_an_index_that_names_other_files(sharded, name):
    edit(sharded / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(
        InputError, match="'lm_head.weight' in .*only read from .safetensors files in the same folder"
    ):
        library.resolve(sharded)


def test_an_index_without_a_map(sharded):
    (sharded / INDEX).write_text("{}")
    with pytest.raises(InputError, match="no weight_map"):
        library.resolve(sharded)


@pytest.mark.row("7")
def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="lacks model-00002-of-00002.safetensors"):
        library.resolve(sharded)


@pytest.mark.row("7")
def test_a_shard_too_many(sharded):
    shutil.copy(sharded / "model-00002-of-00002.safetensors", sharded / "model-00003-of-00003.safetensors")
    with pytest.raises(InputError, match="model-00003-of-00003.safetensors is not listed in"):
        library.resolve(sharded)


@pytest.mark.row("7")
def test_a_tensor_that_is_not_where_the_index_says(sharded):
    edit(
        sharded / INDEX,
        lambda index: index["weight_map"].update({"lm_head.weight": "model-00002-of-00002.safetensors"}),
    )
    with pytest.raises(
        InputError,
        match="places 'lm_head.weight' in model-00002-of-00002.safetensors, which does not hold it",
    ):
        library.resolve(sharded)


@pytest.mark.row("7")
def test_a_tensor_that_the_index_does_not_know(sharded):
    edit(sharded / INDEX, lambda index: index["weight_map"].pop("lm_head.weight") and None)
    with pytest.raises(InputError, match="holds 'lm_head.weight', which .* does not list"):
        library.resolve(sharded)


def test_a_tensor_in_two_shards(sharded):
    second = sharded / "model-00002-of-00002.safetensors"
    tensors = load_file(second) | {"lm_head.weight": torch.zeros(258, 64)}
    save_file(tensors, second)
    with pytest.raises(InputError, match="'lm_head.weight' is in both"):
        library.resolve(sharded)


def test_a_truncated_file(folder):
    with (folder / SINGLE).open("r+b") as file:
        file.truncate((folder / SINGLE).stat().st_size - 100)
    with pytest.raises(InputError, match="cut short"):
        library.resolve(folder)


@pytest.mark.row("7")
def test_a_missing_tensor_is_named_and_not_initialised(folder):
    retensor(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(
        InputError,
        match="the weights of model.layers.1.self_attn.k_proj.weight are missing. Missing weights are never",
    ):
        library.resolve(folder)


def test_a_tensor_without_a_place(folder):
    retensor(folder, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.zeros(2)}))
    with pytest.raises(InputError, match="model.layers.0.extra.weight is not part of the model"):
        library.resolve(folder)


@pytest.mark.row("7")
def test_a_tensor_of_another_shape(folder):
    retensor(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(InputError, match=r"model.norm.weight has the shape \(65,\), expected \(64,\)"):
        library.resolve(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors.pop(EXPERT), f"the weights of {EXPERT} are missing"),
        (
            lambda tensors: tensors.update({EXPERT: torch.zeros(3, 3)}),
            f"{EXPERT} has the shape .3, 3., but the first expert has .64, 64.",
        ),
    ],
    ids=["missing", "shape"],
)
def test_one_expert_that_does_not_fit(originals, tmp_path, change, message):
    folder = shutil.copytree(originals["moe"], tmp_path / "moe")
    retensor(folder, change)
    with pytest.raises(InputError, match=f"does not match its config.json: {message}"):
        library.resolve(folder)


@pytest.mark.row("12")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8], ids=str)
def test_eight_bit_weights_are_quantized_already(folder, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    retensor(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(InputError, match=f"already quantized: {name!r}"):
        library.resolve(folder)


# -- config --------------------------------------------------------------------------------------------------

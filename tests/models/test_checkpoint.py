"""Folders on disk: what is read from them, and every way in which files, index and config can contradict each
other."""

import json
import os
import shutil
import time

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from qcore import library
from qcore.base.errors import InputError
from qcore.models.checkpoint import INDEX, SINGLE


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


def edit(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def retensor(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


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


def test_a_stamp_of_files_that_are_gone(folder):
    checkpoint = library.resolve(folder)
    (folder / SINGLE).unlink()
    with pytest.raises(InputError, match="can no longer be read"):
        _ = checkpoint.stamp


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


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="lacks model-00002-of-00002.safetensors"):
        library.resolve(sharded)


def test_a_shard_too_many(sharded):
    shutil.copy(sharded / "model-00002-of-00002.safetensors", sharded / "model-00003-of-00003.safetensors")
    with pytest.raises(InputError, match="model-00003-of-00003.safetensors is not listed in"):
        library.resolve(sharded)


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


def test_a_tensor_of_another_shape(folder):
    retensor(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(InputError, match=r"model.norm.weight has the shape \(65,\), expected \(64,\)"):
        library.resolve(folder)


@pytest.mark.parametrize(
    "field, value, tensor",
    [
        ("num_hidden_layers", 1, "model.layers.1"),
        ("num_hidden_layers", 3, "model.layers.2"),
        ("intermediate_size", 96, "model.layers.0.mlp"),
        ("num_key_value_heads", 4, "self_attn.k_proj"),
        ("vocab_size", 300, "weight"),
        ("hidden_size", 32, "weight"),
    ],
    ids=lambda value: str(value),
)
def test_a_config_that_contradicts_the_weights(folder, field, value, tensor):
    edit(folder / "config.json", lambda config: config | {field: value})
    with pytest.raises(InputError, match=f"does not match its config.json.*{tensor}"):
        library.resolve(folder)


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8], ids=str)
def test_eight_bit_weights_are_quantized_already(folder, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    retensor(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(InputError, match=f"already quantized: {name!r}"):
        library.resolve(folder)


# -- config --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_code_is_refused(folder, file, nested):
    wish = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    edit(folder / file, lambda config: config | ({"text_config": wish} if nested else wish))
    with pytest.raises(InputError, match=f"requires code of its own .auto_map in {file}"):
        library.resolve(folder)


def test_fields_that_choose_code_are_stripped_and_named(folder):
    wishes = {
        "trust_remote_code": True,
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "rope_scaling": {"trust_remote_code": True, "rope_type": "default"},
        "transformers_weights": "../../secret.bin",
    }
    edit(folder / "config.json", lambda config: config | wishes)
    checkpoint = library.resolve(folder)
    assert (
        "Ignored in its config.json: _attn_implementation, attn_implementation, transformers_weights, "
        "trust_remote_code" in checkpoint.description
    )
    assert "kernel" not in json.dumps(checkpoint.config)
    model = library.load(checkpoint).model
    assert "/" not in model.config._attn_implementation


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "gguf"])
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_quantized_checkpoints_are_refused_by_name(folder, method, nested):
    entry = {"quantization_config": {"quant_method": method, "bits": 4}}
    edit(folder / "config.json", lambda config: config | ({"text_config": entry} if nested else entry))
    with pytest.raises(InputError, match=f"already quantized .{method}."):
        library.resolve(folder)


@pytest.mark.parametrize("file, name", [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_older_quantized_checkpoints(folder, file, name):
    (folder / file).write_text("{}")
    with pytest.raises(InputError, match=f"already quantized .{name}."):
        library.resolve(folder)


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter"):
        library.resolve(folder)


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", "2"),
        ("num_hidden_layers", 2.0),
        ("num_hidden_layers", True),
        ("vocab_size", 1 << 31),
        ("hidden_size", 1 << 40),
        ("max_position_embeddings", 1 << 60),
        ("num_attention_heads", 0),
        ("intermediate_size", [64, 1 << 40]),
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_anything_is_built(folder, field, value, monkeypatch):
    monkeypatch.setattr("qcore.models.assembly.assemble", lambda *args: pytest.fail("something was built"))
    edit(folder / "config.json", lambda config: config | {field: value})
    with pytest.raises(InputError, match=f"config.json has {field} = "):
        library.resolve(folder)


@pytest.mark.parametrize(
    "field, value, message",
    [("num_hidden_layers", 2000, "2000 layers"), ("vocab_size", 1 << 23, "an embedding of 8388608 x 64")],
)
def test_sizes_that_the_weights_cannot_fill(folder, field, value, message, monkeypatch):
    monkeypatch.setattr("qcore.models.assembly.assemble", lambda *args: pytest.fail("something was built"))
    edit(folder / "config.json", lambda config: config | {field: value})
    with pytest.raises(InputError, match=message):
        library.resolve(folder)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("lama", "Did you mean llama"),
        ("no_such_thing_at_all_xyz", "Unknown architecture"),
        (None, "does not name a model_type"),
        ("bert", "should|does not|not what|cannot"),
        ("clip", "does not predict the next token|valid"),
    ],
    ids=str,
)
def test_architectures(folder, kind, message):
    edit(folder / "config.json", lambda config: config | {"model_type": kind})
    with pytest.raises(InputError, match=message):
        library.resolve(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "no-such-activation"},
        {"rope_parameters": {"rope_type": "bent"}},
        {"rms_norm_eps": "small"},
        {"num_attention_heads": 5},
        {"torch_dtype": "float3"},
        {"layer_types": ["full_attention"]},
        {"pad_token_id": 10**9},
    ],
    ids=lambda change: next(iter(change)),
)
def test_values_that_make_no_sense_are_one_sentence_or_harmless(folder, change):
    edit(folder / "config.json", lambda config: config | change)
    try:
        checkpoint = library.resolve(folder)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert checkpoint.parameters == 107072


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}'], ids=repr)
def test_a_broken_config(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json"):
        library.resolve(folder)


def test_a_folder_that_qcore_saved_without_its_manifest(folder):
    edit(folder / "config.json", lambda config: config | {"quantization_config": {"quant_method": "qcore"}})
    with pytest.raises(InputError, match="qcore.json is missing"):
        library.resolve(folder)


def test_local_folders_are_refused_in_public(folder):
    with pytest.raises(InputError, match="not accepted here"):
        library.resolve(str(folder), public=True)

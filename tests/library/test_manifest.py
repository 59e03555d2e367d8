"""qcore.json is not trusted: any change to it gives the same model, or an error of one sentence."""

import copy
import json
import shutil

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated

from qcore.base import tensor_file
from qcore.base.errors import InputError
from qcore.library import safetensors
from qcore.models.headers import read_header
from qcore.models.mapping import read_file
from qcore.quantization.convert import quantize
from qcore.recipes import parse

KINDS = {
    "uniform": ("llama-tied", "int4-g64-head8"),
    "table": ("llama", "nf4-g64-dq"),
    "learned": ("gpt2", "kmeans4"),
    "experts": ("moe", "int8"),
    "half": ("llama", "bf16"),
}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of saved models by kind, with their manifests and weights. "sparse" has zeros that are left
    out."""
    made = {}
    for kind, (config, name) in KINDS.items():
        folder = tmp_path_factory.mktemp(kind) / "model"
        model, recipe = tiny.model(config), parse(name)
        safetensors.save(model, tiny.tokenizer(), recipe, quantize(model, recipe), folder)
        made[kind] = folder
    model, recipe = tiny.model("llama"), parse("int4-g64-sym")
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[:, 8:] = 0
    ledger = quantize(model, recipe)
    made["sparse"] = tmp_path_factory.mktemp("sparse") / "model"
    names = {"model.layers.0.mlp.up_proj.codes", "model.layers.1.mlp.up_proj.codes"}
    safetensors.save(model, tiny.tokenizer(), recipe, ledger, made["sparse"], sparse=names)
    record = json.loads((made["sparse"] / "qcore.json").read_text())
    assert len(record["sparse"]) == 2
    return {
        kind: (folder, json.loads((folder / "qcore.json").read_text()), weights(safetensors.load(folder)[0]))
        for kind, folder in made.items()
    }


@pytest.mark.row("F1")
@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "sparse"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_a_changed_manifest_is_the_same_model_or_refused(kind, saved, data):
    folder, record, expected = saved[kind]
    changed = data.draw(mutated(record))
    try:
        (folder / "qcore.json").write_text(json.dumps(changed))
        model, ledger, _ = safetensors.load(folder)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    finally:
        (folder / "qcore.json").write_text(json.dumps(record))
    found = weights(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    held = sum(tensor.nbytes for tensor in read_header(folder / "model.safetensors").values())
    assert ledger.stored_bytes == held or kind == "sparse"


def change(record: dict, path: str, value) -> None:
    *above, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    for key in above:
        record = record[key]
    if value is None:
        del record[last]
    else:
        record[last] = value


CHANGES = [
    ("uniform", "tensors/0/shape", [258, 8 * 64], "which has another shape or format"),
    ("uniform", "tensors/1/shape/1", 8 * 64, "has the shape"),
    ("uniform", "sha256", None, "it has no 'sha256'"),
    ("uniform", "sha256", "0", "the SHA-256 of model.safetensors"),
    ("uniform", "sha256", {"../model.safetensors": "0" * 64}, "not the name of a weight file"),
    ("uniform", "sha256", {"a/b.safetensors": "0" * 64}, "not the name of a weight file"),
    ("uniform", "sha256", {"other.safetensors": "0" * 64}, r"other\.safetensors cannot be read"),
    ("uniform", "tensors/0/format/type", "ternary", "The format 'ternary' is unknown"),
    ("uniform", "tensors/0/format/bits", 4.0, "the format's bits is 4.0"),
    ("uniform", "tensors/1/format/group_size", 32, "is in int4-g32, but the recipe"),
    ("uniform", "tensors/1", None, "it does not list"),
    ("uniform", "tensors/1/like", "lm_head", "which has another shape or format"),
    ("table", "tensors/0/format/double_quant", False, "is in nf4-g64, but the recipe"),
    ("table", "recipe/weights", {"type": "codebook", "kind": "fp4", "group_size": 64}, "but the recipe"),
    ("table", "recipe/weights/type", "saved", "recipe record cannot be read"),
    ("experts", "ledger/rows/0/bytes_after", 1, "its ledger counts"),
    ("experts", "ledger/rows/0/name", "x", "tensors that differ from the model"),
    ("experts", "ledger/rows/3/shape", [1], "in the shape"),
    ("experts", "ledger/recipe", "int4", "its ledger is that of 'int4'"),
    ("sparse", "sparse/0/columns", 512, "invalid entry for sparse storage"),
    ("sparse", "sparse/0", None, "the weight files have no"),
]


@pytest.mark.row("F1")
@pytest.mark.parametrize(("kind", "path", "value", "message"), CHANGES, ids=lambda value: str(value)[:30])
def test_what_a_manifest_may_not_say(kind, path, value, message, saved, tmp_path):
    folder, record, _ = saved[kind]
    changed = copy.deepcopy(record)
    change(changed, path, value)
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "qcore.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message):
        safetensors.load(tmp_path / "model")


WEIGHTS = [
    (
        "missing",
        lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.scale"),
        "have no model.layers.0.mlp.up_proj.scale",
    ),
    ("extra", lambda tensors: tensors.update(x=torch.zeros(1)), "have x, which has no place"),
    (
        "dtype",
        lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64, dtype=torch.int64)}),
        "is stored as I64",
    ),
    (
        "narrow",
        lambda tensors: tensors.update(
            {"model.layers.0.mlp.up_proj.codes": torch.zeros(128, 4, dtype=torch.uint8)}
        ),
        r"is stored as U8 \(128, 4\), but should be U8 \(128, 32\)",
    ),
    (
        "few values",
        lambda tensors: tensors.update(
            {"model.layers.0.mlp.up_proj.codes.sparse_values": torch.zeros(3, dtype=torch.uint8)}
        ),
        "another number of values",
    ),
]


@pytest.mark.row("35")
@pytest.mark.parametrize(("name", "damage", "message"), WEIGHTS, ids=[name for name, *_ in WEIGHTS])
def test_weight_files_that_do_not_fit_their_manifest(name, damage, message, saved, tmp_path):
    """Their SHA-256 is correct: an attacker writes both."""
    folder, record, _ = saved["sparse" if name == "few values" else "uniform"]
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_file(weights, read_header(weights)).items()}
    before = sum(tensor.nbytes for tensor in tensors.values())
    damage(tensors)
    changed = copy.deepcopy(record) | {"sha256": tensor_file.write(tensors, weights)}
    if name != "few values":  # sparse matrices are counted in their dense form
        more = sum(tensor.nbytes for tensor in tensors.values()) - before
        changed["ledger"]["rows"][0]["bytes_after"] += more
    (tmp_path / "model" / "qcore.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message):
        safetensors.load(tmp_path / "model")


def test_experts_in_another_order_are_the_same_model(saved, tmp_path):
    folder, record, expected = saved["experts"]
    shutil.copytree(folder, tmp_path / "model")
    changed = {**record, "tensors": record["tensors"][::-1]}
    (tmp_path / "model" / "qcore.json").write_text(json.dumps(changed))
    found = weights(safetensors.load(tmp_path / "model")[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_nothing_is_read_before_it_is_checked(saved, monkeypatch, tmp_path):
    folder, record, _ = saved["uniform"]
    shutil.copytree(folder, tmp_path / "model")
    changed = copy.deepcopy(record)
    change(changed, "tensors/1/shape", [64, 8 * 64])
    (tmp_path / "model" / "qcore.json").write_text(json.dumps(changed))

    def refuse(*arguments):
        raise AssertionError("weights were mapped")

    monkeypatch.setattr(safetensors, "read_file", refuse)
    with pytest.raises(InputError, match="has the shape"):
        safetensors.load(tmp_path / "model")


def test_a_config_that_is_too_large_for_the_weights_is_refused(saved, tmp_path):
    shutil.copytree(saved["uniform"][0], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for key, value in (("num_hidden_layers", 2000), ("vocab_size", 1 << 24)):
        (tmp_path / "model" / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(InputError, match=r"config\.json declares"):
            safetensors.load(tmp_path / "model")


@pytest.mark.row("F1")
@pytest.mark.parametrize("size", [1 << 40, 1 << 62, -64, 0, 7, "64", 64.0, True, [64]], ids=str)
def test_a_group_size_that_recipe_and_matrices_agree_on(saved, tmp_path, size):
    """2^40 was a list of as many scales per group, and a division by zero in native code."""
    folder, record, _ = saved["table"]
    changed = copy.deepcopy(record)
    changed["recipe"]["weights"]["group_size"] = size
    for matrix in changed["tensors"]:
        matrix["format"]["group_size"] = size
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "qcore.json").write_text(json.dumps(changed))
    with pytest.raises(InputError):
        safetensors.load(tmp_path / "model")


@pytest.mark.row("F1", "18")
@pytest.mark.parametrize("file", ["a\0.safetensors", "x" * 300 + ".safetensors", "\ud800.safetensors", ".."])
def test_a_name_of_a_weight_file_that_no_file_has(saved, tmp_path, file):
    """A null byte was an error of Python."""
    folder, record, _ = saved["uniform"]
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "qcore.json").write_text(json.dumps(record | {"sha256": {file: "0" * 64}}))
    with pytest.raises(InputError, match="not the name of a weight file"):
        safetensors.load(tmp_path / "model")


@pytest.mark.row("8")
@pytest.mark.parametrize(
    ("name", "number"),
    [("model.layers.0.mlp.up_proj.scale", "NaN"), ("model.norm.weight", "infinite")],
    ids=["scale", "norm"],
)
def test_numbers_that_are_not_finite(saved, tmp_path, name, number):
    """A saved model of a stranger gave logits of NaN."""
    folder, record, _ = saved["uniform"]
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_file(weights, read_header(weights)).items()}
    tensors[name].view(-1)[3] = float("nan") if number == "NaN" else float("-inf")
    changed = record | {"sha256": tensor_file.write(tensors, weights)}
    (tmp_path / "model" / "qcore.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=rf"must be finite, but {name}.* is {number}"):
        safetensors.load(tmp_path / "model")

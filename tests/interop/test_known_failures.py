"""Failures that people reported of other projects, each as a small case. docs/interop.md lists all of them
with their tests; those that belong to no other file are here."""

import ast
import json
import re
import resource
import shutil
import subprocess
import sys

import gguf
import gguf_models
import matrix
import pytest
import runtimes
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from qcore import recipes
from qcore.base.errors import InputError
from qcore.layers.modules import QuantLinear
from qcore.library import exports, resolve
from qcore.models.headers import read_header
from qcore.quantization import convert
from qcore.quantization.calibration import load_calibration
from qcore.verbs import export, plan
from qcore.verbs.prepare import find, prepare

FAILURES = 21
FOREIGN = "model.language_model.layers.0.mlp"
TARGETS = {
    "gguf": "gguf-q4_0",
    "compressed-tensors": "int4-g64",
    "gptq": "int4-g64",
    "awq": "int4-g64",
    "bnb": "nf4-g64",
    "mlx": "int4-g64",
}
PACKED = {target: recipe for target, recipe in TARGETS.items() if target != "gguf"}


def write(original, recipe, folder, target, skip=()):
    chosen = recipes.parse(recipe).with_modules(skip=skip)
    return export.run(str(original), chosen, folder, to=target, progress=lambda *_: None)


def as_stored(folder):
    path = next(folder.glob("*.gguf"), folder)
    return prepare(find(str(path), None, as_stored=True), None, progress=lambda *_: None).loaded


def test_every_known_failure_names_a_test_that_exists():
    page = matrix.PAGE.read_text().partition("## Known failures")[2].partition("\n## ")[0]
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, FAILURES + 1))
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            tree = ast.parse((matrix.ROOT / "tests" / path).read_text())
            tests = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
            assert name in tests, (path, name)


@pytest.mark.parametrize("target", TARGETS)
def test_a_skip_pattern_with_another_prefix_is_refused(target, originals, tmp_path):
    """sglang#37848: a pattern with a prefix that the model lacks matches nothing, and nobody is told."""
    with pytest.raises(InputError, match=f"{FOREIGN!r} matches no module"):
        write(originals("llama"), TARGETS[target], tmp_path / "out", target, skip=(FOREIGN,))
    assert not (tmp_path / "out").exists()


LISTS = {"compressed-tensors": "ignore", "awq": "modules_to_not_convert", "bnb": "llm_int8_skip_modules"}


@pytest.mark.parametrize("target", LISTS)
def test_an_ignore_list_with_another_prefix_changes_no_weight(target, originals, tmp_path):
    """sglang#37848, from the reader's side: what a file holds is read from the file."""
    out = tmp_path / "out"
    write(originals("llama"), TARGETS[target], out, target, skip=("layers.0.mlp.down_proj",))
    wanted = as_stored(out).model.state_dict()
    config = json.loads((out / "config.json").read_text())
    listed = config["quantization_config"][LISTS[target]]
    assert "model.layers.0.mlp.down_proj" in listed
    config["quantization_config"][LISTS[target]] = [f"model.language_{name}" for name in listed]
    (out / "config.json").write_text(json.dumps(config))
    loaded = as_stored(out)
    row = next(r for r in loaded.ledger.rows if r.name == "model.layers.0.mlp.down_proj.weight")
    assert row.format is None
    found = loaded.model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("target", TARGETS)
def test_skipped_modules_have_their_weights_after_a_reload(target, originals, tmp_path):
    """AutoAWQ#589: the list of skipped modules is not stored, and a reader initializes them at random."""
    original, skip = originals("llama-tied"), ("layers.0",)
    write(original, TARGETS[target], tmp_path / "out", target, skip)
    back = as_stored(tmp_path / "out").model
    held = load_file(original / "model.safetensors")
    modules = dict(back.named_modules())
    skipped = [name for name in held if ".layers.0." in name and held[name].ndim == 2]
    assert len(skipped) == 7
    for name in skipped:
        assert torch.equal(modules[name.removesuffix(".weight")].weight.float(), held[name]), name
    coded = [name for name, module in modules.items() if isinstance(module, QuantLinear)]
    assert len(coded) == 7 and all(".layers.1." in name for name in coded)
    ours = prepare(
        find(str(original), None),
        recipes.parse(TARGETS[target]).with_modules(skip=skip),
        progress=lambda *_: None,
    ).loaded.model
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, ours(ids).logits, atol=1e-4, rtol=0)


@pytest.fixture
def predicting(tmp_path, monkeypatch):
    """A checkpoint of two shards, of which the second holds a head that predicts further tokens. The class
    ignores it, as those of published models do."""
    folder = tiny.checkpoint("llama", tmp_path / "original")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(held, folder / shards[0], {"format": "pt"})
    save_file({"mtp.0.weight": torch.arange(32.0).reshape(4, 8)}, folder / shards[1], {"format": "pt"})
    places = dict.fromkeys(held, shards[0]) | {"mtp.0.weight": shards[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^mtp\."])
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_for_further_tokens_is_carried_or_listed(target, predicting, tmp_path):
    """auto-round#1526, Model-Optimizer#2427: its tensors vanish, with exit status 0."""
    out = tmp_path / "out"
    result = write(predicting, TARGETS[target], out, target)
    listed = [note for note in result["notes"] if "mtp.0.weight" in note]
    carried = [file for file in out.glob("*.safetensors") if "mtp.0.weight" in read_header(file)]
    assert len(listed) == 1, "the user reads of it in both cases"
    if carried:
        assert torch.equal(load_file(carried[0])["mtp.0.weight"], torch.arange(32.0).reshape(4, 8))


@pytest.mark.parametrize("target", PACKED)
def test_every_end_of_text_is_in_the_folder(target, originals, tmp_path):
    """GPTQModel#1291: generation_config.json is missing, so generation does not stop."""
    original = tmp_path / "original"
    shutil.copytree(originals("llama"), original)
    (original / "generation_config.json").write_text('{"eos_token_id": [257, 10]}')
    write(original, TARGETS[target], tmp_path / "out", target)
    config = as_stored(tmp_path / "out").model.generation_config
    assert config.eos_token_id == [257, 10]


@pytest.mark.parametrize("target", PACKED)
def test_a_plan_counts_the_bytes_of_packed_weights(target, originals, own_home, tmp_path):
    """omlx#3489: eight codes in an int32 are taken for one weight, and the size is 8 times too large."""
    original = originals("llama")
    write(original, TARGETS[target], tmp_path / "out", target)
    found = plan.run(str(tmp_path / "out"))
    stored = sum(tensor.nbytes for tensor in read_header(tmp_path / "out" / "model.safetensors").values())
    assert {row.stored_bytes for row in found.rows} == {stored}
    assert found.parameters == resolve(str(original)).parameters


def test_an_expert_that_no_text_reaches_is_rounded_and_named(tmp_path):
    """llama.cpp#9167, #7816: its statistics are empty, and the tensor is NaN or refused."""
    model = tiny.model("moe")
    for layer in model.model.layers:
        gate = layer.mlp.gate
        gate.top_k = 1
        gate.weight.data[1] = -gate.weight.data[0]
        gate.weight.data[3] = 0.0  # one of the first two has a larger logit, whatever the input
    text = tmp_path / "text.txt"
    text.write_text("It was the best of tokens, it was the worst of tokens. " * 20)
    calibration = load_calibration(str(text), tiny.tokenizer(), tokens=256)
    ledger = convert.quantize(model, recipes.parse("int4-g32-gptq"), calibration=calibration)
    rows = [row for row in ledger.rows if ".experts." in row.name]
    assert rows and all(re.search(r"reached \d of 4 experts.*rounded to nearest", row.reason) for row in rows)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(3, 60)[None]).logits).all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_that_cannot_grow_leaves_nothing(target, originals, tmp_path):
    """fastText#1200: a full disk is no error, and the file is useless."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot be written: File too large") as caught:
            write(originals("llama"), TARGETS[target], tmp_path / "out", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    write(originals("llama"), TARGETS[target], tmp_path / "out", target)
    assert (tmp_path / "out" / "qcore-export.json").exists()


def test_no_stale_shard_is_left_in_a_folder(originals, tmp_path, monkeypatch):
    """quip-sharp#46: shards of two exports in one folder."""
    target = exports.load("compressed-tensors")
    with monkeypatch.context() as patch:
        patch.setattr(type(target), "shard_bytes", 40_000)
        write(originals("llama"), "int4-g64", tmp_path / "out", "compressed-tensors")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    chosen = recipes.parse("int4-g64")
    export.run(
        str(originals("llama")),
        chosen,
        tmp_path / "out",
        to="compressed-tensors",
        overwrite=True,
        progress=lambda *_: None,
    )
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


PEAK = """
import gc, sys
import torch
from qcore.measurement.memory import PeakMemory
from qcore.verbs.prepare import find, prepare

def run(path):
    loaded = prepare(find(path, None, as_stored=True), None, progress=lambda *_: None).loaded
    with torch.no_grad():
        loaded.model(torch.arange(3, 20)[None])

run(sys.argv[1])  # so that libraries do not count
gc.collect()
with PeakMemory() as peak:
    run(sys.argv[2])
print(peak.peak_bytes - peak.start_bytes)
"""


@pytest.mark.slow
def test_a_file_takes_little_more_memory_than_its_size(own_home, tmp_path):
    """transformers#34417: 90 GB for a file of 2 bits per weight."""
    for name, layers in (("small", 1), ("large", 28)):  # the matrices of a model of 0.6 billion weights
        config = LlamaConfig(
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=layers,
            num_attention_heads=16,
            num_key_value_heads=8,
            max_position_embeddings=512,
        )
        gguf_models.write_random(tmp_path / f"{name}.gguf", config, gguf.GGMLQuantizationType.Q4_0)
    files = [str(tmp_path / f"{name}.gguf") for name in ("small", "large")]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *files], cwd=matrix.ROOT, capture_output=True, text=True, check=True
    )
    size = (tmp_path / "large.gguf").stat().st_size
    assert size > 190e6 and int(done.stdout.split()[-1]) <= 1.3 * size


FIRST_FORWARD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    model(torch.tensor([[1, 2, 3]]))
print(model.model.layers[0].mlp.down_proj.weight.dtype)
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int4-g64", "int4-g64-sym"])
def test_an_export_says_that_the_loader_decompresses(recipe, originals, tmp_path):
    """compressed-tensors#267: nothing is faster, because the weights are floats while the model runs."""
    result = export.run(
        str(originals("llama")),
        recipes.parse(recipe),
        tmp_path / "out",
        to="compressed-tensors",
        progress=lambda *_: None,
    )
    assert any("decompresses" in note for note in result["notes"])
    python = runtimes.interpreter("transformers", "compressed_tensors")
    ran = subprocess.run(
        [python, "-c", FIRST_FORWARD, str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert ran.stdout.strip() == "torch.float32", ran.stderr[-2000:]

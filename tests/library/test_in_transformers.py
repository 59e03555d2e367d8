"""`AutoModelForCausalLM.from_pretrained` on folders that qcore saved, with qcore imported. Without it, and in
fresh processes: tests/interop/test_saved_in_transformers.py."""

import json
import shutil

import fakehub
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

import qcore
from qcore.base.errors import InputError
from qcore.layers.modules import QuantLinear
from qcore.library import safetensors
from qcore.models.config import NEEDED, read_config

IDS = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function from a kind of model and a recipe to the folder of a saved model."""
    place = tmp_path_factory.mktemp("saved")

    def folder(kind, recipe, skip=()):
        original, target = place / kind, place / f"{kind}-{recipe}-{len(skip)}"
        if not original.exists():
            tiny.checkpoint(kind, original)
        if not target.exists():
            qcore.save(qcore.quantize(str(original), recipe, skip=skip), target)
        return target

    return folder


@pytest.fixture
def reports(caplog):
    """What transformers and the quantizer log from "warning" upwards."""
    logging.enable_propagation()
    yield lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= 30 and record.name.startswith(("transformers", "qcore.library"))
    ]
    logging.disable_propagation()


CASES = [
    *((kind, recipe) for kind in tiny.CONFIGS for recipe in ("int4-g64", "int4-g32-head8")),
    ("llama-tied", "rot-int4-g64"),
    ("llama", "nf4-g64-dq"),
    ("llama", "kmeans4"),
    ("llama", "int8-dynamic"),
]


@pytest.mark.parametrize("kind, recipe", CASES, ids=lambda value: value)
@torch.no_grad()
def test_the_logits_are_those_of_qcore_load(kind, recipe, saved, reports):
    folder = saved(kind, recipe)
    ours, _, _ = safetensors.load(folder)
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert torch.equal(theirs(IDS).logits, ours(IDS).logits)
    assert not any(report.values()) and not reports()
    assert theirs.dtype == torch.float32 and not theirs.training
    assert not any(parameter.requires_grad for parameter in theirs.parameters())
    assert [name for name, _ in theirs.named_modules()] == [name for name, _ in ours.named_modules()]
    made = theirs.generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(made, ours.generate(IDS, max_new_tokens=5, do_sample=False))


@torch.no_grad()
def test_skipped_layers_are_loaded_as_they_were_saved(saved):
    folder = saved("llama", "int4-g64", ("layers.0",))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(theirs(IDS).logits, safetensors.load(folder)[0](IDS).logits)
    assert type(theirs.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert type(theirs.model.layers[1].mlp.up_proj) is QuantLinear


@torch.no_grad()
def test_options_of_from_pretrained_hold(saved, reports):
    folder = saved("llama", "int4-g64")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", device_map="auto", dtype=torch.bfloat16
    )
    assert theirs.config._attn_implementation == "eager" and theirs.dtype == torch.float32
    assert reports() == ["A model quantized by qcore computes in float32, not in torch.bfloat16."]
    assert torch.allclose(theirs(IDS).logits, safetensors.load(folder)[0](IDS).logits, atol=1e-5)
    with pytest.raises(ValueError, match="onto one device"):
        AutoModelForCausalLM.from_pretrained(folder, device_map={"model": "cpu", "lm_head": "cpu"})


def test_a_damaged_file_is_found(saved, tmp_path):
    folder = shutil.copytree(saved("llama", "int4-g64"), tmp_path / "copy")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="is damaged: its SHA-256"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_loaded_model_is_saved_by_qcore_alone(saved, tmp_path):
    theirs = AutoModelForCausalLM.from_pretrained(saved("llama", "int4-g64"))
    with pytest.raises(ValueError, match="qcore"):
        theirs.save_pretrained(tmp_path / "no")


def test_from_a_hub_the_manifest_is_fetched_as_well(saved, tmp_path, monkeypatch):
    with fakehub.serve() as hub:
        fakehub.point_library_at(monkeypatch, hub.url, tmp_path / "cache")
        hub.repositories["somebody/small"] = folder = saved("llama", "int4-g64")
        theirs = AutoModelForCausalLM.from_pretrained("somebody/small")
        assert hub.asked_for("qcore.json")
        with torch.no_grad():
            assert torch.equal(theirs(IDS).logits, safetensors.load(folder)[0](IDS).logits)


def test_the_field_that_stops_other_programs_is_ours(saved, tmp_path):
    """It is removed without a word, from our own folders alone."""
    folder = saved("llama", "int4-g64")
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers_weights"] == NEEDED and not NEEDED.endswith(".safetensors")
    assert read_config(folder)[1] == []
    assert AutoConfig.from_pretrained(folder).quantization_config["quant_method"] == "qcore"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "transformers_weights": "x"}')
    assert read_config(tmp_path)[1] == ["transformers_weights"]

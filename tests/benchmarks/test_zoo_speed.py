"""The benchmark of every family: its shapes, the measured process at a small size, and its table."""

import pytest
import torch

from benchmarks import zoo, zoo_table
from benchmarks.peers import zoo as peer


def test_every_family_has_a_shape_of_its_own():
    assert set(zoo.SHAPES) == set(zoo.families())


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "OlmoeForCausalLM"])
def test_models_have_about_as_many_weights_as_planned(architecture):
    assert zoo._count(zoo.config(architecture)) == pytest.approx(zoo.WEIGHTS, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", zoo.SHAPES)
def test_all_models_have(architecture):
    assert zoo._count(zoo.config(architecture)) == pytest.approx(zoo.WEIGHTS, rel=0.05)


def test_both_ways_are_measured(monkeypatch, tmp_path):
    small = zoo.config("OlmoeForCausalLM", layers=1)
    small.update({"hidden_size": 64, "intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2})
    small.update({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 200})
    monkeypatch.setattr(peer, "config", lambda architecture: small)
    options = {
        "threads": torch.get_num_threads(),
        "architecture": "OlmoeForCausalLM",
        "recipes": ["int4-g32-head8"],
        "steps": 2,
        "gguf": str(tmp_path / "f32.gguf"),
        "prompt": [1, 2, 3],
    }
    measure, about = peer.load(options)
    assert about["kernels"]["int4-g32-head8"][0] == "whole step in one native call"
    assert about["no_gguf"] is None and (tmp_path / "f32.gguf").stat().st_size > 4 * about["weights"]
    for item in ("int4-g32-head8", "int4-g32-head8 modules"):
        assert min(measure(item).values()) > 0


def row(architecture: str, ratio: float, llama: bool) -> dict:
    rates = {"decode": 100.0, "prefill": 500.0}
    slower = {"decode": 100.0 / ratio, "prefill": 500.0 / ratio}
    samples = {}
    for recipe in zoo.RECIPES:
        samples |= {recipe: [rates], f"{recipe} modules": [slower]}
    samples |= {"q4_0": [{"decode": 80.0, "prefill": 400.0}]} if llama else {}
    return {
        "architecture": architecture,
        "shape": "Some 1B",
        "weights": 500_000_000,
        "rates": {item: each[0] for item, each in samples.items()},
        "ratios": zoo._ratios(samples),
        "no_llama_cpp": None if llama else "llama-cpp-python is not installed",
        "others_busy": 0.5,
    }


def test_the_table_shows_ratios_and_what_is_missing():
    result = {
        "rows": [row("LlamaForCausalLM", 4.0, True), row("GPT2LMHeadModel", 2.0, False)],
        "conditions": {
            "weights": 5e8,
            "vocabulary": 32000,
            "prompt_tokens": 128,
            "steps": 32,
            "rounds": 3,
            "threads": 2,
        },
        "environment": {"cpu": "Some CPU"},
        "started_at": 0.0,
    }
    page = zoo_table.page(result)
    assert "| Llama (disturbed) | Some 1B | 500 M | 100 | 4.00 x | 4.00 x |" in page
    assert "1.25 x" in page and "2.00 x | – | – |" in page
    assert "llama-cpp-python is not installed" in page and "disturbed" in zoo_table.text(result)
    assert zoo.file_name({"cpu": "Some CPU"}, 2, 0.0).startswith("zoo-some-cpu-2-threads-19")

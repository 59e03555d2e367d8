"""The builder of tiny checkpoints: small models of every architecture, with logits that differ."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.zoo import build, model, names
from tests.zoo.overrides import IMPOSSIBLE, OVERRIDES
from tests.zoo.shrink import config_of, fields_of, shape_of


@pytest.mark.slow
def test_every_registered_architecture_has_a_configuration():
    """A new architecture of transformers shows here first, if its sizes need an override."""
    for name in names():
        config_of(name)


def test_no_exception_is_stale():
    from transformers import CONFIG_MAPPING

    assert set(IMPOSSIBLE) <= set(CONFIG_MAPPING) and not set(IMPOSSIBLE) & set(names())
    for name, override in OVERRIDES.items():
        assert set(override.fields(shape_of(name))) <= set(fields_of(CONFIG_MAPPING[name], shape_of(name)))


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "qwen3_next", "deepseek_v3"])
def test_logits_depend_on_the_tokens(name):
    built = model(name).float()
    with torch.no_grad():
        logits = built(input_ids=5 + torch.arange(24)[None] * 7).logits
    assert torch.isfinite(logits).all() and logits.std(-1).min() > 0.05
    assert sum(parameter.numel() for parameter in built.parameters()) < 2_500_000


def test_a_hybrid_has_every_kind_of_layer():
    config = config_of("qwen3_next")
    assert set(config.layer_types) == {"linear_attention", "full_attention"}
    assert len(config.layer_types) == config.num_hidden_layers


def test_checkpoints_load_in_transformers(tmp_path):
    folder = build("llama", tmp_path / "llama")
    again, built = AutoModelForCausalLM.from_pretrained(folder), model("llama")
    assert again.dtype == built.dtype and (folder / "tokenizer.json").exists()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), built.parameters(), strict=True))

"""Neurons and layers are cut from the text model inside a wrapper, and its towers stay."""

import pytest
import torch
import wrapped_models

from qcore.layers.text_part import text_part
from qcore.library import load, plain
from qcore.pruning.structured import Cut, cut


@pytest.mark.parametrize("method", ["neurons", "layers"])
def test_a_wrapper_is_cut_in_its_text_model(method, tmp_path):
    loaded = load(wrapped_models.checkpoint("mistral3", tmp_path / "model"))
    ids = torch.arange(64).view(2, 32) + 40
    smaller, _ = cut(loaded.model, Cut(method, 0.5), ids, lambda *step: None)
    text = smaller.config.get_text_config()
    assert (text.num_hidden_layers, text.intermediate_size) == ((2, 48) if method == "neurons" else (1, 96))
    assert smaller.config.vision_config.num_hidden_layers == 3
    plain.save(smaller, loaded.tokenizer, {}, tmp_path / "out")
    again = load(tmp_path / "out").model
    assert type(again) is type(loaded.model) and len(text_part(again).stack.layers) == text.num_hidden_layers
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, smaller(input_ids=ids).logits)

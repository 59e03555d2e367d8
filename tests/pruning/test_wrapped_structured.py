"""Neurons and layers are cut from the text model inside a wrapper, and its towers stay."""

import published
import pytest
import torch
import wrapped_models

from qcore.base.errors import InputError
from qcore.layers.text_part import text_part
from qcore.library import load, plain
from qcore.pruning.structured import Cut, cut, with_layers


@pytest.mark.parametrize(
    ("kind", "method"), [("mistral3", "neurons"), ("mistral3", "layers"), ("gemma4", "layers")]
)
def test_a_wrapper_is_cut_in_its_text_model(kind, method, tmp_path):
    """Gemma 4 keeps inputs per layer in one tensor, and settings by the number of the layer: it failed."""
    loaded = load(wrapped_models.checkpoint(kind, tmp_path / "model"))
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


def test_layers_that_others_read_are_not_cut():
    """The last two layers reuse keys and values of a layer with a window, of which none is left."""
    made = published.BUILT["gemma4"]()
    with pytest.raises(InputError, match="Gemma4ForConditionalGeneration cannot do without the other layers"):
        with_layers(made, [1, 3, 4, 5])
    assert len(text_part(with_layers(made, [0, 1, 4, 5])).stack.layers) == 4

"""Embeddings that multiply their rows: found by what they compute, quantized with the head, planned."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

import qcore
from qcore.layers.embedding import is_embedding, scale_of
from qcore.layers.modules import QuantEmbedding
from tests.zoo import build


class Normed(nn.Embedding):
    def forward(self, ids):
        return nn.functional.normalize(super().forward(ids), dim=-1)


@pytest.mark.parametrize(
    "module, scale",
    [
        (nn.Embedding(10, 4, padding_idx=7), 1.0),
        (Gemma3TextScaledWordEmbedding(10, 4, 7, embed_scale=2304**0.5), 48.0),
        (Gemma3TextScaledWordEmbedding(10, 4, None, embed_scale=0.1), float(torch.tensor(0.1))),
    ],
    ids=["plain", "scaled", "no round number"],
)
def test_the_scale_is_exact(module, scale):
    ids = torch.arange(10)
    assert scale_of(module) == scale
    assert torch.equal(module(ids), module.weight * scale)


def test_other_embeddings_are_not_scaled_rows():
    with torch.device("meta"):
        assert not is_embedding(OPTLearnedPositionalEmbedding(10, 4))
        assert is_embedding(Gemma3TextScaledWordEmbedding(10, 4, 0, embed_scale=8.0))
    assert not is_embedding(Normed(10, 4)) and not is_embedding(nn.Embedding(10, 4, max_norm=1.0))
    assert not is_embedding(nn.Linear(4, 10)) and not is_embedding(None)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3n_text"])
def test_a_tied_scaled_embedding_shares_the_codes_of_the_head(kind, tmp_path):
    """The plan counted one matrix, and the model held two: codes of the head, and the embedding in full."""
    folder = build(kind, tmp_path / "original")
    loaded = qcore.quantize(str(folder), "int4-g32-head8")
    embedding = loaded.model.get_input_embeddings()
    assert isinstance(embedding, QuantEmbedding)
    assert (
        loaded.model.get_output_embeddings().quantized.codes.data_ptr()
        == embedding.quantized.codes.data_ptr()
    )
    (row,) = qcore.plan(str(folder), ["int4-g32-head8"], context=64, kv=["fp32"]).rows
    assert row.stored_bytes == loaded.ledger.stored_bytes
    ids = torch.arange(24)[None]
    expected = loaded.model(input_ids=ids).logits
    saved = qcore.save(loaded, tmp_path / "saved")
    assert torch.equal(qcore.load(str(saved)).model(input_ids=ids).logits, expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(saved)(input_ids=ids).logits, expected)

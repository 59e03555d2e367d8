"""Bytes per token against counts by hand, on tiny models (hidden 64, vocabulary 258, float32)."""

import pytest
import tiny

from qcore import recipes
from qcore.layers.inventory import inventory, kept_row
from qcore.measurement.traffic import bytes_a_token
from qcore.quantization import convert

EMBEDDING, ROW = 258 * 64 * 4, 64 * 4


def rows_of(model):
    return [kept_row(*each, None) for each in inventory(model)]


def stored(rows):
    return sum(row.bytes_after for row in rows)


@pytest.mark.parametrize("kind, unread", [("llama-tied", 0), ("llama", EMBEDDING - ROW), ("gpt2", 511 * ROW)])
def test_one_row_of_an_embedding_unless_the_head_is_the_same(kind, unread):
    model = tiny.model(kind)
    rows = rows_of(model)
    assert bytes_a_token(model, rows) == stored(rows) - unread


def test_experts_that_the_token_is_not_sent_to_are_not_read():
    model = tiny.model("moe")  # two layers, four experts of 3 matrices of 64 x 64; each token uses two
    rows = rows_of(model)
    assert bytes_a_token(model, rows) == stored(rows) - (EMBEDDING - ROW) - 2 * 2 * (3 * 64 * 64 * 4)


@pytest.mark.parametrize("recipe", ["int4-g32-head8", "nf4-g64", "bf16", "torch-dynamic-int8"])
@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_quantized_models(kind, recipe):
    model = tiny.model(kind)
    ledger = convert.quantize(model, recipes.parse(recipe))
    sizes = {row.name: row.bytes_after for row in ledger.rows}
    shared = sizes["lm_head.weight"] == 0
    unread = 0 if shared else sizes["model.embed_tokens.weight"] * 257 / 258
    assert shared == (kind == "llama-tied" and recipe != "torch-dynamic-int8")
    assert bytes_a_token(model, ledger.rows) == pytest.approx(ledger.stored_bytes - unread, abs=1)

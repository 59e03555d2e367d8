"""The ledger is data: the tensor whose storage a row shares is a field, also in ledgers of version 0.1.0."""

import json

import pytest
import tiny

from qcore import recipes
from qcore.quantization import convert
from qcore.recipes.ledger import Ledger


@pytest.mark.parametrize("name", ["fp32", "int8", "int4-g32-head8"])
def test_tied_tensors_name_each_other_in_a_field(name):
    model = tiny.model("llama-tied")
    ledger = convert.quantize(model, recipes.parse(name))
    shares = {row.name: row.shares for row in ledger.rows if row.shares}
    assert shares == {"lm_head.weight": "model.embed_tokens.weight"}
    assert Ledger.from_dict(json.loads(json.dumps(ledger.to_dict()))) == ledger


@pytest.mark.parametrize(
    "words", ["Shares the storage of model.a.weight.", "Shares the codes of model.a.weight."]
)
def test_ledgers_of_0_1_0_named_it_in_the_reason_alone(words):
    row = {
        "name": "b",
        "shape": [2, 2],
        "dtype": "float32",
        "format": None,
        "bytes_before": 0,
        "bytes_after": 0,
        "weights": 4,
        "reason": words,
        "intended": True,
    }
    (found,) = Ledger.from_dict({"recipe": "int8", "rows": [row]}).rows
    assert found.shares == "model.a.weight" and found.reason == words
    (other,) = Ledger.from_dict({"recipe": "int8", "rows": [row | {"reason": "A vector."}]}).rows
    assert other.shares is None

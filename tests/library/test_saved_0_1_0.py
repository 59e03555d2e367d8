"""Models that version 0.1.0 (commit 81247f7) saved still load, with the same bits and the same
predictions."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from qcore.formats.tensor import QuantizedTensor
from qcore.library import safetensors
from qcore.recipes import parse

FIXTURES = Path(__file__).parent.parent / "fixtures" / "saved-0.1.0"
RECORDED = json.loads((FIXTURES / "recorded.json").read_text())


def digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", RECORDED["models"])
def test_a_model_saved_by_0_1_0_computes_what_it_did(name):
    wanted = RECORDED["models"][name]
    model, ledger, recipe = safetensors.load(FIXTURES / name)
    weights = {
        path: digest(module.quantized.dequantize())
        for path, module in model.named_modules()
        if isinstance(getattr(module, "quantized", None), QuantizedTensor)
    }
    assert weights == wanted["weights"], "bit for bit"
    assert recipe == parse(wanted["recipe"]) and ledger.recipe == wanted["recipe"]
    assert (ledger.stored_bytes, ledger.coverage) == (wanted["stored_bytes"], wanted["coverage"])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(RECORDED["ids"])).logits[0, -1]
    # recorded with exact activations; a native kernel reads them in 16 bits
    torch.testing.assert_close(logits, torch.tensor(wanted["logits"]), rtol=1e-3, atol=1e-3)


def test_the_sparse_fixture_is_sparse():
    assert json.loads((FIXTURES / "sparse" / "qcore.json").read_text())["sparse"]

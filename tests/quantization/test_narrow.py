"""Models in 16 bits have the types, and on fast hardware the logits, of those that transformers loads so."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from qcore import library
from qcore.planning.stored import stored
from qcore.quantization import narrow
from qcore.quantization.convert import quantize
from qcore.recipes import parse
from tests import zoo

IDS = torch.arange(24)[None]


def types(model) -> dict[str, torch.dtype]:
    return {name: each.dtype for name, each in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("name", ["llama", "inkling2_text", "mamba2"])
@torch.no_grad()
def test_bf16_is_what_transformers_loads_in_bf16(name, tmp_path, monkeypatch):
    """Everything was converted: Inkling 2 failed in its convolutions, which its class keeps in float32, and
    rotary frequencies were rounded to 8 bits."""
    monkeypatch.setattr(narrow, "computes_fast", lambda *_: True)
    folder = zoo.build(name, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    loaded = library.load(library.resolve(folder))
    planned = stored(loaded.model, parse("bf16")).total
    ledger = quantize(loaded.model, parse("bf16"))
    assert types(loaded.model) == types(theirs) and planned == ledger.stored_bytes
    assert torch.equal(loaded.model(IDS).logits, theirs(IDS).logits)
    kept = {row.name: row.reason for row in ledger.rows if row.format is None and not row.shares}
    assert all(reason.startswith("Kept: transformers computes it in float32") for reason in kept.values())
    assert bool(kept) == (name == "inkling2_text")


@torch.no_grad()
def test_on_slow_hardware_the_same_tensors_stay_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(narrow, "computes_fast", lambda *_: False)
    loaded = library.load(library.resolve(zoo.build("inkling2_text", tmp_path)))
    before = loaded.model(IDS).logits
    planned = stored(loaded.model, parse("bf16")).total
    ledger = quantize(loaded.model, parse("bf16"))
    assert planned == ledger.stored_bytes and any(row.format is None for row in ledger.rows)
    assert torch.nn.functional.cosine_similarity(loaded.model(IDS).logits, before, dim=-1).min() > 0.99

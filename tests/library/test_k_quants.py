"""K-quants from end to end, on a model whose widths are multiples of 256: chosen, planned, saved, loaded and
streamed."""

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from qcore import library
from qcore.library import safetensors
from qcore.planning.stored import stored
from qcore.quantization.calibration import Calibration
from qcore.quantization.convert import quantize
from qcore.recipes import parse
from qcore.streaming import quantizing

CONFIG = LlamaConfig(
    hidden_size=256,
    intermediate_size=320,  # down_proj has no whole super-blocks, so it falls back
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=1,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    vocab_size=tiny.VOCABULARY,
)
FALLBACKS = {"gguf-q2_k": "gguf-q4_0", "gguf-q3_k": "gguf-q4_0", "gguf-q4_k": "gguf-q5_0"}
FALLBACKS |= {"gguf-q5_k": "gguf-q5_1", "gguf-q6_k": "int8-g32-sym"}


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).eval()


def ids(rows: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 48), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FALLBACKS)
@torch.no_grad()
def test_a_k_quant_is_planned_saved_loaded_and_streamed(name, tmp_path):
    original, recipe = model(), parse(name)
    original.save_pretrained(tmp_path / "original")
    tiny.tokenizer().save_pretrained(tmp_path / "original")
    quantized = model()
    ledger = quantize(quantized, recipe)
    labels = {row.name: row.format for row in ledger.rows}
    assert labels["model.layers.0.self_attn.q_proj.weight"] == name
    assert labels["model.layers.0.mlp.down_proj.weight"] == FALLBACKS[name]
    folder = safetensors.save(quantized, tiny.tokenizer(), recipe, ledger, tmp_path / "saved")
    loaded, found, _ = safetensors.load(folder)
    assert found == ledger
    assert torch.equal(loaded(ids()).logits, quantized(ids()).logits)
    streamed = quantizing.quantize(library.resolve(tmp_path / "original"), recipe, tmp_path / "streamed")
    assert streamed.stored_bytes == ledger.stored_bytes
    again, _, _ = safetensors.load(tmp_path / "streamed")
    assert torch.equal(again(ids()).logits, quantized(ids()).logits)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hqq", "gptq", "awq", "signround"])
@torch.no_grad()
def test_every_method_lowers_the_error_of_a_k_quant(method):
    text = Calibration("random bytes", "0" * 64, ids())
    exact = model()(ids()).logits
    errors = []
    for name in ("gguf-q3_k", f"gguf-q3_k-{method}"):
        quantized = model()
        quantize(quantized, parse(name), calibration=text if parse(name).calibrated else None)
        errors.append(float((quantized(ids()).logits - exact).square().mean()))
    assert errors[1] < errors[0]


def test_a_plan_counts_the_bytes_of_the_fallback():
    for name in FALLBACKS:
        quantized, recipe = model(), parse(name)
        ledger = quantize(quantized, recipe)
        assert stored(model(), recipe).total == ledger.stored_bytes

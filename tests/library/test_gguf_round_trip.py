"""GGUF files that qcore wrote, opened with their own codes: each architecture comes back as it was."""

from copy import deepcopy

import pytest
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

import qcore
from qcore import library
from qcore.layers.modules import QuantizedModule
from qcore.recipes import parse
from qcore.verbs import export

IDS = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
IDS_OF = dict(bos_token_id=256, eos_token_id=257, pad_token_id=None)
SIZES = dict(
    vocab_size=tiny.VOCABULARY,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    **IDS_OF,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 4 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
GEMMA = dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=16)
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama-bias": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-moe": Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=64, norm_topk_prob=False),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=16, norm_topk_prob=True),
    "olmoe": OlmoeConfig(**{**SIZES, "num_key_value_heads": 4}, num_experts=4, num_experts_per_tok=2),
    "gemma": GemmaConfig(**SIZES, head_dim=16),
    "gemma2": Gemma2Config(**SIZES, **GEMMA),
    "gemma3": Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 6}, **GEMMA),
    "phi3": Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=32),
    "gpt2": GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=512, **IDS_OF),
}
pytestmark = pytest.mark.usefixtures("own_home")


@pytest.mark.parametrize("kind", CONFIGS)
def test_codes_and_logits_come_back(kind, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[kind]), dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter) if parameter.ndim == 1 else 3 * parameter.data
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    # llama.cpp keeps the gate of the shared expert in float32
    recipe = parse("gguf-q4_0")
    export.run(str(tmp_path / "model"), recipe, tmp_path / "out", to="gguf", progress=lambda *step: None)
    (path,) = (tmp_path / "out").glob("*.gguf")
    found, wanted = (
        library.load(library.resolve(path, as_stored=True)),
        qcore.quantize(str(tmp_path / "model"), recipe),
    )
    assert type(found.model) is type(wanted.model)
    ours, theirs = (dict(loaded.model.named_modules()) for loaded in (wanted, found))
    coded = [name for name, module in ours.items() if isinstance(module, QuantizedModule)]
    assert len(coded) >= 8
    for name in coded:
        assert torch.equal(ours[name].quantized.dequantize(), theirs[name].quantized.dequantize()), name
    with torch.no_grad():
        got, right = found.model(IDS).logits, wanted.model(IDS).logits
    assert right.std() > 0.1 and (got - right).abs().max() < 1e-4 * right.abs().max()
    assert found.model.config.eos_token_id == 257
    assert found.tokenizer.get_vocab().items() >= wanted.tokenizer.get_vocab().items()

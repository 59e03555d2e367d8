"""Quantized fused experts of transformers' classes: the native form, the kernels one by one, and
transformers' own forward compute the same."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    MixtralConfig,
    NemotronHConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
)

from qcore import recipes, runtime
from qcore.base.transformers_internals import eager_experts
from qcore.layers import expert_forward as experts
from qcore.quantization.convert import quantize

SIZES = dict(
    vocab_size=258,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=None,
)
EIGHT = dict(moe_intermediate_size=44, num_experts_per_tok=2)
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES, intermediate_size=96, num_local_experts=4),
    "olmoe": OlmoeConfig(**SIZES, intermediate_size=64, num_experts=8, num_experts_per_tok=3),
    "gpt-oss": GptOssConfig(
        **SIZES, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2, head_dim=16
    ),
    "qwen2-moe": Qwen2MoeConfig(**SIZES, **EIGHT, shared_expert_intermediate_size=64, num_experts=8),
    "glm4-moe": Glm4MoeConfig(**SIZES, **EIGHT, intermediate_size=64, n_routed_experts=8, head_dim=16),
}


def make(config: str, recipe: str = "int4-g32") -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[config]), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(False)
            parameter.mul_(4).add_(torch.randn_like(parameter), alpha=0.1 if "bias" in name else 0.0)
    quantize(model, recipes.parse(recipe))
    runtime.detach(model)  # the whole step would take the place of this forward
    return model


def fused(model: torch.nn.Module) -> list:
    return [module for module in model.modules() if hasattr(module, "is_transposed")]


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
def test_all_forwards_agree(config, monkeypatch):
    model = make(config)
    module = fused(model)[0]
    assert experts.reason_against(module) is None
    for tokens in (1, 3, 40):
        ids = torch.randint(0, 258, (1, tokens))
        native = model(ids).logits
        with monkeypatch.context() as patch:
            patch.setattr(experts, "described", lambda *_: None)
            one_by_one = model(ids).logits
        torch.testing.assert_close(native, one_by_one, rtol=0, atol=1e-4 * float(native.abs().max()))
    for each in fused(model):
        each.gate_up_proj.activations = each.down_proj.activations = "fp32"
    exact = model(ids).logits
    assert not torch.equal(exact, native)
    with eager_experts(module):
        torch.testing.assert_close(model(ids).logits, exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@torch.no_grad()
def test_activations_have_the_precision_of_the_recipe():
    """Experts used to run in float32, whatever the recipe said."""
    ids = torch.arange(40)[None]
    model = make("mixtral", "int8-dynamic")
    assert {module.down_proj.activations for module in fused(model)} == {"int8"}
    native = model(ids).logits
    with eager_experts(fused(model)[0]):
        exact = model(ids).logits
    off = float((native - exact).abs().max() / exact.abs().max())
    assert 1e-3 < off < 0.1


@torch.no_grad()
def test_a_change_of_a_weight_is_noticed():
    model = make("gpt-oss")
    module = fused(model)[0]
    ids = torch.arange(3)[None]
    before = model(ids).logits
    module.down_proj_bias.data = module.down_proj_bias + 1
    changed = model(ids).logits
    assert not torch.allclose(before, changed, atol=1e-2)
    model.state_dict()  # restores the stored form: packed weights are freed
    assert torch.equal(model(ids).logits, changed)


@torch.no_grad()
def test_experts_without_a_gate_run_one_by_one():
    config = NemotronHConfig(
        **SIZES,
        layers_block_type=["moe"],
        n_routed_experts=4,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    quantize(model, recipes.parse("int8"))
    module = fused(model)[0]
    assert experts.reason_against(module) is not None
    ids = torch.arange(5)[None]
    found = model(ids, use_cache=False).logits
    with eager_experts(module):
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_gradients_flow_through_experts():
    model = make("olmoe")
    inputs = torch.randn(1, 5, 64, requires_grad=True)
    model(inputs_embeds=inputs).logits.sum().backward()
    found = inputs.grad.clone()
    inputs.grad = None
    with eager_experts(fused(model)[0]):
        model(inputs_embeds=inputs).logits.sum().backward()
    torch.testing.assert_close(found, inputs.grad, rtol=0, atol=1e-3 * float(found.abs().max()))


def test_deepseek_runs_by_the_same_forward():
    """Its router has groups and a correction; only the experts are ours."""
    config = DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        **EIGHT,
        intermediate_size=64,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    quantize(model, recipes.parse("int8"))
    assert experts.reason_against(fused(model)[0]) is None

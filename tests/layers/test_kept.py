"""What a recipe keeps by rule, and why: the small parts of recurrences, convolutions and mixtures."""

from functools import cache

import pytest
import torch
from torch import nn

from qcore import recipes
from qcore.base.errors import NotAppliedError
from qcore.layers.select import select
from qcore.quantization.convert import quantize
from tests import zoo


@cache
def model(name):
    return zoo.model(name)


def selection(name):
    found = select(model(name), recipes.parse("int4-g32"))
    return {target.name: target.kind for target in found.targets}, found.kept, found.missed


@pytest.mark.parametrize(
    ("name", "parameter", "reason"),
    [
        ("qwen3_next", "model.layers.0.linear_attn.conv1d.weight", "Depthwise convolutions"),
        ("qwen3_next", "model.layers.0.linear_attn.in_proj_ba.weight", "Gates"),
        ("qwen3_next", "model.layers.0.mlp.shared_expert_gate.weight", "Gates"),
        ("qwen3_5_text", "model.layers.0.linear_attn.in_proj_a.weight", "Gates"),
        ("qwen3_5_text", "model.layers.0.linear_attn.A_log", "Norms and biases"),
        ("mamba", "backbone.layers.0.mixer.A_log", "Parameters of a recurrence"),
        ("mamba2", "backbone.layers.0.mixer.conv1d.weight", "Depthwise convolutions"),
        ("zamba", "model.layers.2.mamba.x_proj_weight", "Parameters of a recurrence"),
        ("jamba", "model.layers.0.mamba.A_log", "Parameters of a recurrence"),
        ("kimi_linear", "model.layers.2.self_attn.b_proj.weight", "Gates"),
        ("xlstm", "backbone.blocks.0.mlstm_layer.fgate_preact.weight", "Gates"),
        ("rwkv", "rwkv.blocks.0.attention.time_mix_key", "Norms and biases"),
        (
            "recurrent_gemma",
            "model.layers.0.temporal_block.rg_lru.input_gate_weight",
            "Parameters of a recurrence",
        ),
        ("jetmoe", "model.layers.0.mlp.router.layer.weight", "Routers"),
        ("zaya", "model.layers.0.self_attn.qkv_proj.conv_qk_grouped.weight", "Convolutions"),
    ],
)
def test_kept_by_rule_with_the_reason(name, parameter, reason):
    """Three-dimensional parameters such as the depthwise convolution once turned the run red."""
    targets, kept, missed = selection(name)
    assert kept[parameter].startswith(reason) and parameter not in targets
    assert not missed


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3_5_text", ("in_proj_qkv", "in_proj_z", "out_proj")),
        ("qwen3_next", ("in_proj_qkvz", "out_proj")),
        ("mamba", ("in_proj", "x_proj", "dt_proj", "out_proj")),
        ("mamba2", ("in_proj", "out_proj")),
        ("lfm2", ("conv.in_proj", "conv.out_proj")),
        ("rwkv", ("attention.key", "attention.value", "attention.receptance", "attention.output")),
        ("minimax", ("qkv_proj", "output_gate", "out_proj")),
        ("xlstm", ("q", "k", "v", "out_proj", "ogate_preact")),
    ],
)
def test_matrices_of_linear_layers_are_quantized(name, parameters):
    targets, _, _ = selection(name)
    for parameter in parameters:
        assert any(target.endswith(f".{parameter}.weight") for target in targets), parameter


def test_a_layer_with_few_outputs_is_no_gate_by_its_size_alone():
    """One key-value head of one number per head: a projection, not a gate."""
    made = model("llama")
    layer = made.model.layers[0].self_attn
    before = layer.k_proj
    layer.k_proj = nn.Linear(before.in_features, made.config.num_attention_heads, bias=False)
    try:
        assert "model.layers.0.self_attn.k_proj.weight" in selection("llama")[0]
    finally:
        layer.k_proj = before


def test_a_large_parameter_of_an_unknown_layout_turns_the_run_red():
    made = zoo.model("llama")
    made.model.layers[0].mlp.mystery = nn.Parameter(torch.randn(4, 64, 96))
    with pytest.raises(NotAppliedError, match="mlp.mystery.*layout is unknown"):
        quantize(made, recipes.parse("int8"))


def test_a_small_one_is_kept():
    made = zoo.model("llama")
    made.model.norm.mystery = nn.Parameter(torch.randn(2, 3, 4))
    assert (
        "not the weight of a linear layer" in select(made, recipes.parse("int8")).kept["model.norm.mystery"]
    )


def test_flat_experts_turn_the_run_red():
    """DBRX keeps all experts in one matrix: the layout is not known, and they are most of the model."""
    with pytest.raises(NotAppliedError, match="experts.mlp.w1"):
        quantize(zoo.model("dbrx"), recipes.parse("int8"))

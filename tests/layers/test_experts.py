"""Fused experts in every layout: found from the sizes, quantized along the inputs, computed as stored."""

import pytest
import torch
from torch import nn

from qcore import api, recipes
from qcore.formats.uniform import Uniform
from qcore.layers.experts import expert_layouts
from qcore.layers.modules import QuantExperts, StoredExperts
from qcore.library import safetensors
from qcore.quantization import methods, narrow
from qcore.quantization.convert import quantize
from qcore.streaming.frame import Frame
from qcore.streaming.source import Source
from tests import zoo

INT8 = Uniform(bits=8, group_size=None, symmetric=True)


@pytest.mark.parametrize(
    ("name", "parameter", "transposed"),
    [
        ("mixtral", "mlp.experts.gate_up_proj", False),
        ("gpt_oss", "mlp.experts.down_proj", True),
        ("llama4_text", "feed_forward.experts.gate_up_proj", True),
        ("llama4_text", "feed_forward.experts.down_proj", True),
        ("jetmoe", "mlp.input_linear.weight", False),
        ("jetmoe", "self_attention.experts.output_linear.weight", False),
        ("longcat_flash", "mlp.experts.down_proj", False),
        ("inkling_text", "mlp.shared_experts.up_proj", False),
    ],
)
def test_layouts(name, parameter, transposed):
    layouts = expert_layouts(zoo.model(name))
    found = {value for key, value in layouts.items() if key.endswith(parameter)}
    assert found == {transposed}


def test_square_experts_follow_the_other_instances_of_their_class():
    """JetMoE's attention experts are square in the released models; its other experts are not."""
    made = zoo.model("jetmoe")
    square = made.model.layers[0].self_attention.experts.input_linear
    square.weight = nn.Parameter(torch.randn(4, 32, 32))
    square.input_size = square.output_size = 32
    name = "model.layers.0.self_attention.experts.input_linear.weight"
    assert expert_layouts(made)[name] is False
    for module in made.modules():
        if type(module) is type(square):
            module.input_size = module.output_size = 32
            module.weight = nn.Parameter(torch.randn(4, 32, 32))
    assert expert_layouts(made) == {}


@pytest.mark.parametrize("recipe", ["int8", "bf16"])
@pytest.mark.parametrize("name", ["llama4_text", "jetmoe", "longcat_flash", "inkling_text"])
@torch.no_grad()
def test_experts_compute_with_their_stored_weights(name, recipe, monkeypatch):
    """Llama 4's experts once stayed at full precision, and so did those of the other classes."""
    monkeypatch.setattr(narrow, "computes_fast", lambda *_: False)
    plain, made = zoo.model(name).float(), zoo.model(name).float()
    layouts = expert_layouts(plain)
    quantize(made, recipes.parse(recipe))
    for full in layouts:
        owner, _, last = full.rpartition(".")
        weight = getattr(made.get_submodule(owner), last)
        assert isinstance(weight, QuantExperts if recipe == "int8" else StoredExperts)
        plain.get_parameter(full).copy_(torch.stack([weight[i] for i in range(weight.shape[0])]))
    for full, parameter in plain.named_parameters():
        if full not in layouts:
            owner, _, last = full.rpartition(".")
            parameter.copy_(getattr(made.get_submodule(owner), last).float())
    ids = torch.arange(2 * 12).view(2, 12) * 7 % 256
    expected, found = plain(ids, use_cache=False).logits, made(ids, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-3)


def test_a_transposed_layout_has_its_groups_along_the_inputs():
    made = zoo.model("llama4_text").float()
    weight = made.model.layers[0].feed_forward.experts.gate_up_proj.detach().clone()
    quantize(made, recipes.parse("int8"))
    coded = made.model.layers[0].feed_forward.experts.gate_up_proj.experts[1].quantized
    expected = methods.quantize(weight[1].T.contiguous(), INT8, "rtn")
    assert coded.shape == expected.shape == tuple(weight[1].T.shape)
    assert torch.equal(coded.codes, expected.codes) and torch.equal(coded.scale, expected.scale)


def test_fused_weights_refuse_what_they_cannot_do():
    weight = StoredExperts(nn.Parameter(torch.randn(3, 4, 5)))
    inputs = torch.randn(3, 2, 4)
    assert torch.equal(
        torch.bmm(inputs, weight), torch.stack([x @ w for x, w in zip(inputs, weight.stored, strict=True)])
    )
    assert torch.bmm(torch.randn(3, 2, 5), weight.transpose(1, 2)).shape == (3, 2, 4)
    with pytest.raises(TypeError, match="as one tensor"):
        torch.einsum("etk,ekn->etn", inputs, weight)
    with pytest.raises(TypeError, match="rows and columns"):
        weight.transpose(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama4_text", "jetmoe"])
def test_saved_and_streamed_as_computed(name, tmp_path):
    folder = zoo.build(name, tmp_path / "plain")
    loaded = api.load(str(folder))
    ids = torch.arange(24)[None] * 5
    made = api.quantize(loaded, "int4-g32")
    api.save(made, tmp_path / "saved")
    again, _, _ = safetensors.load(tmp_path / "saved")
    with torch.no_grad():
        expected = made.model(ids, use_cache=False).logits
        assert torch.equal(again(ids, use_cache=False).logits, expected)
        frame = Frame(Source(made.checkpoint), recipes.parse("int4-g32"))
        frame.fill("")
        assert torch.allclose(frame.model(ids, use_cache=False).logits, expected, atol=1e-4)

"""One linear layer through each library: the stored weight is within half a step of the original, and the
output is its product."""

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from qcore import recipes
from qcore.base import quiet
from qcore.engines import linears, load

quiet.silence()

LIBRARIES = [
    name for name in recipes.engines.recipes() if not name.startswith("onnx-")
]  # those run a whole graph: tests/engines/onnx
INPUTS, OUTPUTS = 192, 48  # 192 is not a multiple of 128: quanto takes groups of 96


class One(nn.Module):
    """A model of one linear layer, with the parts of a transformers model that are used."""

    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(INPUTS, OUTPUTS)
        self.linear.weight.data = 0.05 * torch.randn(OUTPUTS, INPUTS, generator=generator)
        self.linear.bias.data = torch.randn(OUTPUTS, generator=generator)

    def get_output_embeddings(self):
        return None

    def get_input_embeddings(self):
        return None


def apply(name: str) -> tuple[One, torch.Tensor, list]:
    model = One().eval()
    weight = model.linear.weight.detach().clone()
    recipe = recipes.parse(name)
    with torch.no_grad():
        rows = load(recipe.weights.backend).apply(model, recipe, lambda *step: None)
    return model, weight, rows


def stored_weight(name: str, layer: nn.Module) -> torch.Tensor:
    """Return the dequantized weight of the library's stored parts."""
    if name == "bnb-int8":
        return layer.weight.data.float() * layer.weight.SCB.view(-1, 1) / 127
    if name.startswith("bnb"):
        import bitsandbytes.functional as functional

        return functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if name.startswith("torch-"):
        return layer.weight().dequantize()
    return layer.weight.dequantize()


def half_step(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return the largest rounding error of a weight in the format."""
    row = weight.abs().amax(1, keepdim=True)
    if name == "bnb-int8":
        return row / 127 / 2 + weight.abs() * 2**-10  # the library rounds to float16 first
    if name.startswith("torch-"):
        return (
            weight.abs().max() / 127.5 * torch.ones_like(weight)
        )  # one scale per tensor; the largest weight may be clipped
    if "int8" in name:
        return row / 127.5  # of -128 … 127: the largest weight may be clipped by half a step more
    block = weight.view(-1, 64).abs().amax(1, keepdim=True).expand(-1, 64).reshape(weight.shape)
    gap = {"bnb-nf4": 0.304 / 2, "bnb-fp4": (1 - 8 / 12) / 2}
    if name.startswith("bnb"):
        return block * (
            gap[name.removesuffix("-dq")] + (0.02 if name.endswith("dq") else 0)
        )  # dq: the maxima have 8 bits
    group = weight.view(OUTPUTS, -1, 96)
    return ((group.amax(2) - group.amin(2)) / 15).repeat_interleave(96, 1)


@pytest.mark.parametrize("name", LIBRARIES)
def test_weights_move_by_no_more_than_a_step(name):
    model, weight, rows = apply(name)
    got = stored_weight(name, model.linear)
    assert not torch.equal(got, weight)
    assert ((got - weight).abs() <= half_step(name, weight) + 1e-7).all()
    assert rows[0].weights == weight.numel() and rows[0].intended and rows[0].format


# The formats that quantize activations as well add half an 8-bit step of the inputs; bnb-int8 rounds them to
# float16 before.
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_output_is_the_product_with_the_stored_weight(name):
    model, _, _ = apply(name)
    x = torch.randn(7, INPUTS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = nn.functional.linear(
            x, stored_weight(name, model.linear), model.linear.bias if name[:6] != "torch-" else None
        )
        got = model.linear(x) - (model.linear.bias() if name[:6] == "torch-" else 0)
    error = ((got - wanted).norm() / wanted.norm()).item()
    assert error < (0.02 if name in ("bnb-int8", "torchao-int8-dynamic", "torch-dynamic-int8") else 1e-2)


def test_quanto_says_the_group_size_it_really_took():
    _, _, rows = apply("quanto-int4")
    assert rows[0].format == "quanto-int4-g96"
    assert rows[0].bytes_after == OUTPUTS * INPUTS // 2 + 8 * OUTPUTS * INPUTS // 96


def test_outliers_of_llm_int8_stay_exact():
    """An input above 6.0 is multiplied in floating point, so it does not coarsen the others' 8 bits."""
    model, _, _ = apply("bnb-int8")
    x = torch.full((3, INPUTS), 0.01)
    x[:, 5] = 1000.0
    with torch.no_grad():
        wanted = nn.functional.linear(x, stored_weight("bnb-int8", model.linear), model.linear.bias)
        got = model.linear(x)
    assert ((got - wanted).norm() / wanted.norm()).item() < 1e-3


def test_conv1d_becomes_an_equal_linear_layer():
    from transformers.pytorch_utils import Conv1D

    old = Conv1D(24, 16)
    x = torch.randn(3, 16)
    new = linears.as_linear(old)
    assert type(new) is nn.Linear and new.weight.shape == (24, 16)
    assert torch.allclose(new(x), old(x), atol=1e-6)
    plain = nn.Linear(4, 4)
    assert linears.as_linear(plain) is plain

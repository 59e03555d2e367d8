"""Subclasses of `nn.Linear`: those that compute the same product are linear layers, others are not."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, FalconConfig
from transformers.models.falcon.modeling_falcon import FalconLinear

from qcore.base.errors import NotAppliedError
from qcore.layers.linear import is_linear
from qcore.layers.select import select
from qcore.quantization.convert import quantize
from qcore.recipes import parse


class Same(nn.Linear):
    pass


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Normed(nn.Linear):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.ones(self.out_features))

    def forward(self, x):
        return super().forward(x) * self.gain


class Grouped(nn.Linear):
    def forward(self, x):
        return torch.bmm(x, self.weight.view(2, -1, 4))


class Halves(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", [nn.Linear, Same, FalconLinear], ids=lambda kind: kind.__name__)
def test_the_same_product_is_a_linear_layer(kind, bias, device):
    assert is_linear(kind(8, 4, bias=bias).to(device))


def test_another_computation_is_not():
    halved = nn.Linear(8, 4)
    parametrize.register_parametrization(halved, "weight", Halves())
    attention = nn.MultiheadAttention(8, 2).out_proj
    for module in (Scaled(8, 4), Normed(8, 4), Grouped(8, 4), halved, attention, nn.Conv1d(4, 4, 1), None):
        assert not is_linear(module)


def falcon() -> nn.Module:
    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=258, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, bias=True
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["int8", "int4-g32-head8", "bf16"])
@torch.no_grad()
def test_falcons_own_layers_are_quantized(name):
    model = falcon()
    ids = torch.arange(40)[None]
    before = model(ids).logits
    ledger = quantize(model, parse(name))
    rows = [row for row in ledger.rows if ".h." in row.name and len(row.shape) == 2]
    assert len(rows) == 8 and all(row.format for row in rows)
    assert torch.nn.functional.cosine_similarity(model(ids).logits, before, dim=-1).min() > 0.9


class Unlike(nn.Linear):
    """What a subclass of another project may look like."""

    def forward(self, x):
        return super().forward(x).tanh()


def unlike() -> nn.Module:
    model = falcon()
    for name, module in list(model.named_modules()):
        if isinstance(module, FalconLinear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Unlike(module.in_features, module.out_features))
    return model


def test_a_recipe_that_reaches_only_the_head_is_red():
    model = unlike()
    selection = select(model, parse("int8-head8"))
    assert {target.kind for target in selection.targets} == {"head", "embedding"}
    with pytest.raises(NotAppliedError, match="left 8 tensors .*something other than a linear layer"):
        quantize(model, parse("int8-head8"))


def test_a_recipe_that_reaches_nothing_says_why():
    with pytest.raises(NotAppliedError, match="changed nothing.*something other than a linear layer"):
        quantize(unlike(), parse("int8"))

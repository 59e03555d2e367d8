"""Blocks that share parameters, as Zamba 2's do: moments of all uses, one set of codes."""

import pytest
import torch
from small_llama import ids, llama, text
from torch import nn

from qcore.base.errors import InputError
from qcore.layers.select import select
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.convert import quantize
from qcore.recipes import parse

SHARED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.v_proj")


def tied() -> nn.Module:
    """Blocks 0 and 2 share their feed-forward weights, as Zamba 2's do."""
    whole = llama()
    with torch.no_grad():
        for parameter in whole.model.layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    for name in SHARED:
        own, first = (whole.model.layers[i].get_submodule(name) for i in (2, 0))
        own.weight = first.weight
    return whole


@torch.no_grad()
def test_a_shared_parameter_gets_the_moments_of_all_its_uses():
    whole = tied()
    blocks, targets = Blocks(whole), list(select(whole, parse("int8")).targets)
    named = {target.module: target for target in targets}
    uses = {named[f"model.layers.0.{name}"].name: [named[f"model.layers.2.{name}"]] for name in SHARED}
    states, own = blocks.embed(ids()), blocks.inside(targets)[0]
    work = BlockWork(blocks, 0, own, states, None, None, text(), lambda what: None, uses)
    (stage,) = (stage for stage in work.stages if "gate_proj" in stage.names[0])
    (moments,) = work.moments([stage], magnitude=True)
    seen: list[torch.Tensor] = []
    for position in (0, 2):
        whole.model.layers[position].mlp.gate_proj.register_forward_pre_hook(
            lambda module, given: seen.append(given[0].flatten(0, -2))
        )
    whole(ids())
    inputs = torch.cat(seen)
    assert moments.tokens == len(inputs) == 2 * ids().numel()
    torch.testing.assert_close(moments.magnitude, inputs.abs().mean(0), rtol=1e-4, atol=1e-5)
    (down,) = (stage for stage in work.stages if "down_proj" in stage.names[0])
    assert work.moments([down])[0].tokens == len(inputs)


@pytest.mark.parametrize(
    "name", ["int4-g32-gptq", "int4-g16-awq", "int4-g32-signround", "int4-g32-distilled"]
)
@torch.no_grad()
def test_a_shared_parameter_is_quantized_once(name):
    whole, before = tied(), tied()
    few = Calibration("random bytes", "0" * 64, ids(), minutes=0.0001)
    ledger = quantize(whole, parse(name), calibration=few)
    rows = {row.name: row for row in ledger.rows}
    for part in SHARED:
        own, first = (f"model.layers.{i}.{part}" for i in (2, 0))
        codes = [whole.get_submodule(each).quantized.dequantize() for each in (own, first)]
        assert torch.equal(*codes)
        row = rows[f"{own}.weight"]
        assert row.bytes_after == 0 and row.reason == f"Shares the codes of {first}.weight."
    assert torch.nn.functional.cosine_similarity(whole(ids()).logits, before(ids()).logits, -1).mean() > 0.9


class Adapted(nn.Module):
    """A feed-forward part with an adapter that only some blocks use, as in Zamba 2."""

    def __init__(self, inner: nn.Module, used: bool):
        super().__init__()
        self.inner, self.adapter, self.used = inner, nn.Linear(32, 32, bias=False), used

    def forward(self, hidden):
        return self.inner(self.adapter(hidden) if self.used else hidden)


@pytest.mark.parametrize("name", ["int4-g32-gptq", "int4-g32-distilled"])
def test_a_shared_parameter_that_the_first_block_does_not_use_is_quantized_where_it_is_used(name):
    whole = llama()
    for i in (0, 1, 3):
        whole.model.layers[i].mlp = Adapted(whole.model.layers[i].mlp, used=i > 0)
        whole.model.layers[i].mlp.adapter.weight = whole.model.layers[0].mlp.adapter.weight
    ledger = quantize(whole, parse(name), calibration=Calibration("random", "0" * 64, ids(), 0.0001))
    rows = [row for row in ledger.rows if "adapter" in row.name]
    assert [row.reason for row in rows] == [None, *[f"Shares the codes of {rows[0].name}."] * 2]
    weights = [whole.model.layers[i].mlp.adapter.quantized.dequantize() for i in (0, 1, 3)]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_a_shared_module_is_refused():
    whole = llama()
    whole.model.layers[3].mlp = whole.model.layers[1].mlp
    with pytest.raises(InputError, match="its blocks number 2 and 4 share a module"):
        quantize(whole, parse("int4-g32-gptq"), calibration=text())

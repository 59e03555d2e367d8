"""Replaced forwards are restored exactly."""

import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from qcore import recipes
from qcore.layers.stand_in import stand_in
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.tail import Tail
from qcore.quantization.convert import quantize


def test_the_forward_of_the_class_shows_again():
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    expected = linear(x)
    with stand_in(linear, lambda x: x + 1):
        assert torch.equal(linear(x), x + 1)
        with stand_in(linear, lambda x: x + 2):
            assert torch.equal(linear(x), x + 2)
        assert torch.equal(linear(x), x + 1)
    assert "forward" not in vars(linear) and torch.equal(linear(x), expected)


def test_a_forward_that_was_replaced_before_comes_back_after_an_error():
    linear = nn.Linear(2, 2)
    linear.forward = patch = lambda x: 3 * x
    with pytest.raises(ZeroDivisionError), stand_in(linear, lambda x: 1 / 0):
        linear(torch.ones(1, 2))
    assert linear.forward is patch


def test_it_may_stay():
    linear = nn.Linear(2, 2)
    replaced = stand_in(linear, lambda x: x)
    assert linear(1) == 1
    replaced.restore()
    assert "forward" not in vars(linear)


class Counting(ModelHook):
    """accelerate's kind of hook, which replaces the module's forward."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *arguments, **keywords):
        self.calls += 1
        return arguments, keywords


@pytest.fixture
def hooked():
    """A model with a hook of accelerate on each block and each part of a block: (model, {name: hook})."""
    model, hooks = tiny.model("llama"), {}
    for name, module in model.model.layers.named_modules():
        if name and not isinstance(module, nn.Linear):
            hooks[name] = Counting()
            add_hook_to_module(module, hooks[name])
    return model, hooks


def still_heard(model: nn.Module, hooks: dict[str, Counting]) -> bool:
    before = {name: hook.calls for name, hook in hooks.items()}
    model(torch.arange(4)[None])
    return all(hook.calls > before[name] for name, hook in hooks.items())


@torch.no_grad()
def test_hooks_survive_a_walk_over_the_blocks(hooked):
    model, hooks = hooked
    blocks = Blocks(model)
    (state,) = blocks.embed(torch.arange(8)[None])
    for position in range(len(blocks)):
        state = blocks.run(position, state)
    logits = Tail(blocks)(torch.arange(8), state.hidden)
    assert still_heard(model, hooks)
    torch.testing.assert_close(logits, model(torch.arange(8)[None]).logits[0])


@torch.no_grad()
def test_hooks_survive_calibration(hooked):
    model, hooks = hooked
    text = torch.randint(0, 258, (4, 64), generator=torch.Generator().manual_seed(0))
    quantize(model, recipes.parse("int4-g32-gptq"), calibration=Calibration("random tokens", "0" * 64, text))
    assert still_heard(model, hooks)

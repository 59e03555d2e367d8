"""The native step notices whatever changes a model: weights, hooks, forwards, precisions, the config."""

import copy

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from decoder_models import close, detached, ids, make

from qcore.layers.modules import QuantLinear
from qcore.runtime import Context, attach, blocks, detach


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def test_the_first_call_describes_the_model_once(calls, monkeypatch):
    model, seen, describe = make("llama", "int8"), [], blocks.describe
    monkeypatch.setattr(blocks, "describe", lambda part: seen.append(part) or describe(part))
    for _ in range(2):
        model(ids(9)[None])
    assert len(calls) == 2 and len(seen) == 1


def test_hooks_hear_every_step_and_only_while_they_are_there(calls):
    model, heard = make("llama", "int4-g32"), []
    model(ids(5)[None])
    hook = model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda *_: heard.append(1))
    model(ids(5)[None])
    hook.remove()
    model(ids(5)[None], output_hidden_states=True)  # leaves hooks of transformers' own behind
    model(ids(5)[None])
    assert heard == [1] and calls == [(1, 5)] * 2


def test_a_changed_model_is_read_anew(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(20)[None]
    before = model(tokens).logits
    model.model.layers[0].mlp.up_proj = make("llama", "int8", "fp32").model.layers[1].mlp.up_proj
    model.model.norm.weight.mul_(2)
    expected = detached(model)(tokens).logits
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected))
    model.state_dict()  # has the layers hold their parts again
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected))
    assert len(calls) == 3


def test_a_changed_activation_precision_counts_from_the_next_step(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(20)[None]
    exact = model(tokens).logits
    for activations in ("int8", "fp32"):
        for module in model.modules():
            if isinstance(module, QuantLinear):
                module.activations = activations
        expected = detached(model)(tokens).logits
        assert torch.allclose(expected, exact, **close(exact)) == (activations == "fp32")
        torch.testing.assert_close(model(tokens).logits, expected, **close(expected))
    assert len(calls) == 3


def test_an_exchanged_hook_is_heard(calls):
    model, tokens, heard = make("llama", "int4-g32"), ids(5)[None], []
    model(tokens, output_hidden_states=True)  # leaves hooks of transformers' own behind
    model(tokens)
    hooks = model.model.layers[1]._forward_hooks
    hooks[next(iter(hooks))] = lambda *_: heard.append(1)
    model(tokens)
    assert heard == [1] and calls == [(1, 5)]


def test_global_hooks_hear_every_module(calls):
    model, tokens, heard = make("llama", "int4-g32"), ids(5)[None], []
    model(tokens)
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(module))
    try:
        model(tokens)
    finally:
        hook.remove()
    assert model.model.layers[0].mlp.up_proj in heard and calls == [(1, 5)]
    model(tokens)
    assert len(calls) == 2


def test_an_exchanged_parameter_is_read(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(20)[None]
    before = model(tokens).logits
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(norm.weight * torch.linspace(0, 2, 64), requires_grad=False)
    expected = detached(model)(tokens).logits
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "lm_head"])
def test_an_added_bias_is_read(name, calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(20)[None]
    before, layer = model(tokens).logits, model.get_submodule(name)
    layer.bias = torch.nn.Parameter(torch.linspace(-1, 1, layer.out_features), requires_grad=False)
    expected = detached(model)(tokens).logits
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected))
    context = Context(model)
    torch.testing.assert_close(context.append(tokens)[0], expected[0, -1], **close(expected))
    assert len(calls) == 3


def test_a_changed_config_is_read(calls):
    model, tokens = make("llama", "int4-g32"), ids(5)[None]
    model(tokens)
    rope = model.config.rope_parameters
    model.config.rope_parameters = {"rope_type": "dynamic"}  # no longer supported
    model(tokens)
    model.config.rope_parameters = rope
    model(tokens)
    assert len(calls) == 2


def test_copies_are_models_of_their_own(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(20)[None]
    expected = model(tokens).logits
    twin = copy.deepcopy(model)
    model.model.norm.weight.zero_()
    torch.testing.assert_close(twin(tokens).logits, expected, rtol=0, atol=0)
    assert len(calls) == 2


def test_another_librarys_forward_is_neither_passed_by_nor_removed(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(5)[None]
    detach(model)
    stack, heard = model.model, []
    add_hook_to_module(stack, Counting(heard))
    hooked = stack.forward
    attach(model)
    detach(model)
    model(tokens)
    assert stack.forward is hooked and heard == [1] and calls == []


def test_a_hook_around_the_attached_forward_is_heard(calls):
    model, tokens, heard = make("llama", "int4-g32", "fp32"), ids(5)[None], []
    add_hook_to_module(model.model, Counting(heard))
    model(tokens)
    assert heard == [1] and calls == [(1, 5)]


class Counting(ModelHook):
    """A hook as accelerate makes it, which replaces the module's forward."""

    def __init__(self, heard: list):
        self._heard = heard

    def pre_forward(self, module, *arguments, **keywords):
        self._heard.append(1)
        return arguments, keywords


def test_changes_of_experts_are_noticed(calls):
    model = make("gpt-oss", "int4-g32", "fp32")
    tokens = ids(20)[None]
    model(tokens)
    experts = model.model.layers[1].mlp.experts
    experts.down_proj.experts[0], experts.down_proj.experts[1] = (
        experts.down_proj.experts[1],
        experts.down_proj.experts[0],
    )
    expected = detached(model)(tokens).logits
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected))
    experts.gate_up_proj.activations = "int8"
    expected = detached(model)(tokens).logits
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected, 1e-3))
    experts.down_proj.experts[2].restore()
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected, 1e-3))
    assert len(calls) == 4

"""What qcore uses of torch beyond its documentation still is what it was: one test for each function of
`qcore.base.torch_internals`, and one for the overrides of private methods that stand elsewhere."""

import torch
from torch import nn

from qcore.base import torch_internals as internals
from qcore.layers.modules import QuantLinear
from qcore.quantization.methods import quantize
from qcore.recipes import parse


def test_buffers_that_are_saved():
    module = nn.Module()
    module.register_buffer("saved", torch.zeros(1))
    module.register_buffer("computed", torch.zeros(1), persistent=False)
    for name in ("saved", "computed"):
        assert internals.is_saved(module, name) == (name in module.state_dict())


def test_exchanged_tensors_keep_their_registration():
    module = nn.Linear(2, 2)
    module.register_buffer("saved", torch.zeros(1))
    module.register_buffer("computed", torch.zeros(1), persistent=False)
    for name in ("saved", "computed"):
        internals.put_tensor(module, name, None)
        assert getattr(module, name) is None
        internals.put_tensor(module, name, torch.ones(3))
    internals.put_tensor(module, "weight", nn.Parameter(torch.ones(2, 2)))
    assert module.saved.shape == (3,) and set(module.state_dict()) == {"weight", "bias", "saved"}
    assert torch.equal(dict(module.named_parameters())["weight"], torch.ones(2, 2))


def test_buffers_that_change_together():
    module = nn.Module()
    module.register_buffer("saved", torch.zeros(1))
    module.register_buffer("computed", torch.zeros(1), persistent=False)
    internals.put_buffers(module, {"saved": None, "computed": torch.ones(3)})
    assert module.saved is None and module.computed.shape == (3,) and not module.state_dict()


def test_what_a_module_holds():
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_buffer("saved", torch.zeros(1))
    found = internals.registered(module)
    assert found.children == {"0": module[0]} and found.buffers == {"saved": module.saved}
    assert internals.registered(module[0]).parameters["weight"] is module[0].weight
    assert not any((*internals.global_hooks(), found.hooks, found.pre_hooks))
    removable = [
        module.register_forward_hook(print),
        module.register_forward_pre_hook(print),
        nn.modules.module.register_module_forward_hook(print),
        nn.modules.module.register_module_forward_pre_hook(print),
    ]
    try:
        for table in (found.hooks, found.pre_hooks, *internals.global_hooks()):
            assert list(table.values()) == [print]
    finally:
        for hook in removable:
            hook.remove()
    assert not any((*internals.global_hooks(), found.hooks, found.pre_hooks))


def test_a_parameter_that_comes_first():
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_parameter("last", nn.Parameter(torch.zeros(1)))
    internals.put_first_parameter(module, "first", nn.Parameter(torch.zeros(3)))
    assert [name for name, _ in module.named_parameters()] == ["first", "last", "0.weight", "0.bias"]


def test_memory_that_tensors_share():
    tensor = torch.zeros(8)
    key, is_gone = internals.storage_key(tensor)
    assert internals.storage_key(tensor[2:].view(2, 3))[0] == key != internals.storage_key(torch.zeros(8))[0]
    part = tensor[1:]
    del tensor
    assert not is_gone()
    del part
    assert is_gone()


def test_a_module_is_asked_for_its_tensors_through_the_methods_that_qcore_overrides():
    """`QuantizedModule` overrides `_apply`, `_save_to_state_dict` and `_load_from_state_dict`."""
    recipe = parse("int8")
    weight = quantize(torch.randn(64, 64), recipe.weights, "rtn")
    outer = nn.Sequential(QuantLinear(weight, None, "fp32"))
    asked = []
    outer[0].restore = lambda: asked.append("restored")
    outer.to("cpu")
    assert asked, "to() no longer goes through _apply"
    asked.clear()
    state_dict = outer.state_dict()
    assert asked, "state_dict() no longer goes through _save_to_state_dict"
    asked.clear()
    outer.load_state_dict(state_dict)
    assert asked, "load_state_dict() no longer goes through _load_from_state_dict"

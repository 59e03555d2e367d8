"""Fake-quantized layers: their outputs equal those of the stored layers bit for bit, and their gradients
match the definition."""

import pytest
import tiny
import torch

from qcore.base.errors import InputError
from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.k_quants import KQuant
from qcore.formats.signed import Signed
from qcore.formats.tensor import spread
from qcore.formats.uniform import Uniform
from qcore.kernels import precision
from qcore.layers.modules import QuantizedModule
from qcore.quantization import methods
from qcore.quantization.convert import quantize
from qcore.recipes import parse
from qcore.training.attach import TrainableSet, attach, detach, groups, norms
from qcore.training.fake import LEAN, Full, Light

FORMATS = [
    (Uniform(3, 32, False), "rtn"),
    (Uniform(4, 32, True), "rtn"),
    (Uniform(8, None, True), "rtn"),
    (Uniform(8, 16, False), "rtn"),
    (Uniform(4, 16, False, True), "rtn"),
    (Codebook("nf4", 32), "rtn"),
    (Codebook("fp4", 32, True), "rtn"),
    (Codebook("kmeans4", 32), "kmeans"),
    (Codebook("iq4nl", 32), "rtn"),
    (Affine(4, 16), "rtn"),
    (Signed(4, 16), "rtn"),
]
CHANNEL = (Codebook("kmeans4", None), "kmeans")
ids = lambda pair: pair[0].label  # noqa: E731


def weight(columns: int = 80) -> torch.Tensor:
    return torch.randn(12, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pair", FORMATS, ids=ids)
def test_the_light_form_computes_what_is_stored_before_and_after_gains_have_moved(pair):
    tensor = methods.quantize(weight(), *pair)
    fake = Light(tensor)
    if pair[0].double_quant:  # rounding scales that were rounded before moves them by a little
        torch.testing.assert_close(fake.weight(), tensor.dequantize(), rtol=5e-3, atol=0)
    else:
        assert torch.equal(fake.weight(), tensor.dequantize())
    fake.gain.data = 1 + 0.1 * torch.randn(fake.gain.shape, generator=torch.Generator().manual_seed(1))
    stored = fake.result()
    assert torch.equal(fake.weight(), stored.dequantize()) and not torch.equal(
        fake.weight(), tensor.dequantize()
    )
    assert torch.equal(stored.codes, tensor.codes) and stored.nbytes == tensor.nbytes


@pytest.mark.parametrize("columns", [64, 80], ids=["whole groups", "a short group"])
@pytest.mark.parametrize("pair", FORMATS, ids=ids)
def test_the_light_form_in_mixed_precision_is_as_near_as_its_numbers(monkeypatch, pair, columns):
    """Compare the product and the gradients of the gains with float32; the stored layer is the same."""
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    tensor = methods.quantize(weight(columns), *pair)
    plain = Light(tensor)
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    fast, x = Light(tensor), weight(columns)[:5]
    made = []
    for fake in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16, enabled=fake is fast):
            made.append(torch.nn.functional.linear(x, fake.weight()))
        made[-1].float().square().sum().backward()
    assert made[1].dtype == torch.bfloat16
    torch.testing.assert_close(
        made[1].float(), made[0], rtol=0.05, atol=0.02 * float(made[0].detach().abs().max())
    )
    torch.testing.assert_close(
        fast.gain.grad, plain.gain.grad, rtol=0.1, atol=0.02 * float(plain.gain.grad.abs().max())
    )
    assert torch.equal(fast.weight(), plain.weight()) and torch.equal(
        fast.result().dequantize(), plain.result().dequantize()
    )


@pytest.mark.parametrize("pair", [*FORMATS, CHANNEL], ids=ids)
@pytest.mark.parametrize("learned", [False, True], ids=["scales stay", "scales learned"])
def test_the_full_form_computes_what_is_stored_after_weights_have_moved(pair, learned):
    tensor = methods.quantize(weight(), *pair)
    fake = Full(tensor, weight(), learned)
    begun = fake.result().dequantize()  # shifted, but within rounding
    torch.testing.assert_close(
        begun, tensor.dequantize(), rtol=5e-3 if learned and pair[0].double_quant else 0, atol=0
    )
    fake.latent.data += 0.3 * torch.randn(fake.latent.shape, generator=torch.Generator().manual_seed(1))
    if fake.gain is not None:
        fake.gain.data *= 1.07
    stored = fake.result()
    assert torch.equal(fake.weight(), stored.dequantize())
    assert not torch.equal(stored.codes, tensor.codes) and stored.nbytes == tensor.nbytes


@pytest.mark.parametrize("pair", FORMATS, ids=ids)
def test_the_gradient_of_a_gain_is_that_of_the_product(pair):
    tensor = methods.quantize(weight(), *pair)
    fake, size = Light(tensor), pair[0].group_size
    slope = torch.randn(12, 80, generator=torch.Generator().manual_seed(2))
    (fake.weight() * slope).sum().backward()
    gain = torch.ones_like(fake.gain, requires_grad=True)
    values, middle = tensor.dequantize(), 0.0
    if pair[0].affine:  # stretched about its middle
        middle = spread(tensor.minimums() + (pair[0].levels - 1) / 2 * tensor.scales(), 80, size)
    ((middle + (values - middle) * spread(gain, 80, size)) * slope).sum().backward()
    torch.testing.assert_close(fake.gain.grad, gain.grad)


def test_gradients_go_straight_through_within_the_grid_and_scales_have_those_of_lsq():
    tensor = methods.quantize(weight(32), Uniform(3, 16, False), "rtn")
    fake = Full(tensor, None, learn_scales=True)
    fake.latent.data = 1.6 * weight(32)  # some beyond the ends
    scale, zero = spread(fake.scale, 32, 16), spread(fake.zero, 32, 16)
    slope = torch.randn(12, 32, generator=torch.Generator().manual_seed(2))
    (fake.weight() * slope).sum().backward()
    position = fake.latent.detach() / scale
    inside = (position >= -zero) & (position <= 7 - zero)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(fake.latent.grad, slope * inside)
    units = (position.round() + zero).clamp(0, 7) - zero
    by_scale = (slope * torch.where(inside, units - position, units)).unflatten(1, (2, 16)).sum(2)
    torch.testing.assert_close(fake.gain.grad, by_scale * fake.scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_both_forms_of_k_quants_compute_what_is_stored(bits):
    tensor = methods.quantize(weight(256), KQuant(bits), "rtn")
    for fake in (Light(tensor), Full(tensor, weight(256), True)):
        assert torch.equal(fake.weight(), fake.result().dequantize())
        fake.gain.data = 1 + 0.1 * torch.randn(fake.gain.shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(fake.weight(), fake.result().dequantize())
        fake.weight().square().sum().backward()
        assert fake.gain.grad.isfinite().all() and fake.gain.grad.any()


def test_weights_begin_leaning_towards_what_they_were():
    wanted = weight()
    tensor = methods.quantize(wanted, Uniform(4, 16, False), "rtn")
    begun, rounded = Full(tensor, wanted, False).latent, tensor.dequantize()
    step = spread(tensor.scales(), 80, 16)
    assert ((begun - rounded).abs() <= LEAN * step * (1 + 1e-4)).all()
    assert (begun - wanted).abs().mean() < 0.3 * (rounded - wanted).abs().mean()


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
@pytest.mark.parametrize(
    "form", [TrainableSet(), TrainableSet("full"), TrainableSet("full", True)], ids=["light", "full", "lsq"]
)
@pytest.mark.parametrize("recipe", ["int3-g32", "nf4-g32-dq-head8"])
def test_a_model_is_taken_apart_and_put_together_bit_by_bit(kind, form, recipe):
    model, twin = tiny.model(kind), tiny.model(kind)
    quantize(model, parse(recipe))
    before = {
        name: module.weight for name, module in model.named_modules() if isinstance(module, QuantizedModule)
    }
    attach(model, form, twin if form.name == "full" else None)
    text = torch.arange(40)[None]
    loss = model(input_ids=text, labels=text).loss
    loss.backward()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(model.get_parameter(name).grad is not None for name in trained if "experts" not in name)
    assert sum(len(group["params"]) for group in groups(model, 0.1)) == len(trained) and norms(model)
    fakes = {
        name: module.weight().detach()
        for name, module in model.named_modules()
        if isinstance(module, Light | Full)
    }
    detach(model)
    after = {
        name: module.weight for name, module in model.named_modules() if isinstance(module, QuantizedModule)
    }
    assert list(before) == list(after)
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=5e-3 if "dq" in recipe else 0, atol=0)
    held = {
        name.removesuffix(".fake").replace(".fakes.", ".experts."): value for name, value in fakes.items()
    }
    assert held and all(torch.equal(after[name], value) for name, value in held.items())
    assert not any(value.requires_grad for value in model.parameters())


def test_what_cannot_be_trained_is_refused():
    model = tiny.model("llama")
    with pytest.raises(InputError, match="no quantized layers to train"):
        attach(model, TrainableSet())
    quantize(model, parse("kmeans4"))
    with pytest.raises(InputError, match="a table for each channel without scales"):
        attach(model, TrainableSet())
    with pytest.raises(InputError, match="must be light or full"):
        TrainableSet("half")
    with pytest.raises(InputError, match="trains scales anyway"):
        TrainableSet("light", True)

"""Methods that read calibration text, on whole tiny models: they apply, they are saved, and unsupported
requests are errors."""

import copy

import pytest
import tiny
import torch

from qcore.base.errors import InputError
from qcore.library.safetensors import load, save
from qcore.quantization.calibration import Calibration
from qcore.quantization.convert import quantize
from qcore.quantization.methods import rotation
from qcore.recipes import parse

RECIPES = ("int4-g32-gptq", "int4-g32-awq", "nf4-g32-awq", "kmeans4-hessian", "kmeans4-g32-hessian")


def text() -> Calibration:
    return Calibration(
        "random bytes", "0" * 64, torch.randint(0, 256, (3, 48), generator=torch.Generator().manual_seed(0))
    )


def probe() -> torch.Tensor:
    return torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def applied(kind: str, name: str, folder, **options):
    """The quantized model's logits, after comparing them with those of the same model saved and loaded
    again."""
    model, recipe = tiny.model(kind), parse(name)
    ledger = quantize(model, recipe, calibration=text(), **options)
    save(model, tiny.tokenizer(), recipe, ledger, folder)
    again, same, _ = load(folder)
    logits = model(probe()).logits
    assert torch.equal(again(probe()).logits, logits)
    assert same.stored_bytes == ledger.stored_bytes
    return logits


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "moe"])
def test_applied_and_loaded_again(kind, name, tmp_path):
    logits, exact = applied(kind, name, tmp_path / "saved"), tiny.model(kind)(probe()).logits
    assert (logits - exact).norm() < 0.35 * exact.norm()


@pytest.mark.parametrize(
    "name", ["rot-int4-g64", "rot-int4-g32-gptq", "rot-int4-g32-awq", "rot-int4-g32-hqq"]
)
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "moe"])
def test_rotated_applied_and_loaded_again(kind, name, tmp_path):
    logits, exact = applied(kind, name, tmp_path / "saved"), tiny.model(kind)(probe()).logits
    assert (logits - exact).norm() < 0.35 * exact.norm()


@pytest.mark.parametrize("name", ["int4-g32-awq", "kmeans4-hessian"])
def test_a_stopped_run_goes_on_to_the_same_result(name, tmp_path):
    options = {"work": tmp_path / "work", "identity": "model"}

    def stop(done, total, what):
        if what.startswith("block 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(tiny.model("llama"), parse(name), calibration=text(), progress=stop, **options)
    assert len(list((tmp_path / "work").glob("blocks-*/*.safetensors"))) == 1
    resumed, whole = tiny.model("llama"), tiny.model("llama")
    quantize(resumed, parse(name), calibration=text(), **options)
    quantize(whole, parse(name), calibration=text())
    assert torch.equal(resumed(probe()).logits, whole(probe()).logits)


@pytest.mark.parametrize("width", [64, 48, 576, 7])
def test_the_rotation_is_orthogonal(width):
    matrix = rotation.orthogonal(width)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "moe"])
def test_rotation_leaves_the_logits(kind):
    model = tiny.model(kind)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2)
    exact = copy.deepcopy(model)(probe()).logits
    before = model.get_input_embeddings().weight.clone()
    rotation.rotate(model)
    assert not torch.allclose(model.get_input_embeddings().weight, before, atol=1e-2)
    assert (model(probe()).logits - exact).norm() < 1e-4 * exact.norm()


def test_rotation_refuses_layer_norm():
    with pytest.raises(InputError, match="RMSNorm"):
        quantize(tiny.model("gpt2"), parse("rot-int4-g64"))


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "moe"])
@pytest.mark.parametrize("cause", ["logits", "skip", "blocks"])
def test_a_refused_rotation_leaves_the_model_as_it_was(kind, cause, monkeypatch):
    model, recipe = tiny.model(kind), parse("rot-int4-g64-gptq")
    if cause == "logits":
        monkeypatch.setattr(rotation, "TOLERANCE", 0.0)
    elif cause == "skip":
        recipe = recipe.with_modules(skip=("no_such_layer",))
    else:
        model.model.layers = torch.nn.Sequential(*model.model.layers)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    ties, keys = model.config.tie_word_embeddings, list(model.state_dict())
    with pytest.raises(InputError):
        quantize(model, recipe, calibration=text())
    after = dict(model.named_parameters())
    assert list(after) == list(before) and list(model.state_dict()) == keys
    assert all(torch.equal(after[name], tensor) for name, (_, tensor) in before.items())
    assert model.config.tie_word_embeddings == ties
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (kind == "llama-tied")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["int4-g64-awq", "kmeans4-hessian"])
def test_text_is_asked_for(name):
    with pytest.raises(InputError, match="calibration text"):
        quantize(tiny.model("llama"), parse(name))


@pytest.mark.parametrize("name", ["int4-g64-hessian", "kmeans4-awq", "int4-gptq-awq"])
def test_names_that_contradict_themselves_are_refused(name):
    with pytest.raises(InputError):
        parse(name)

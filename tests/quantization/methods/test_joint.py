"""Learning all blocks jointly: the update of a step, a lower divergence on held-out text, and rolling
back."""

import pytest
import tiny
import torch

from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.quantization.calibration import Calibration
from qcore.quantization.convert import quantize
from qcore.quantization.methods import gptq, joint
from qcore.quantization.methods.grid import read
from qcore.recipes import parse


def ids(rows: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 48), generator=torch.Generator().manual_seed(seed))


def text(minutes: float | None = None) -> Calibration:
    return Calibration("random bytes", "0" * 64, ids(), minutes)


@pytest.mark.parametrize(
    "format",
    [
        Uniform(3, 32, False),
        Uniform(4, 32, True),
        Uniform(4, 16, False, True),
        Codebook("nf4", 32),
        Codebook("kmeans4", 32),
        Codebook("kmeans4", None),
    ],
    ids=lambda format: format.label,
)
def test_a_stored_tensor_is_read_back_as_the_grid_it_was_made_from(format):
    weight = torch.randn(16, 80, generator=torch.Generator().manual_seed(0))
    found = gptq.quantize([weight], format, torch.eye(80))[0]
    grid, codes = read(found.tensor)
    torch.testing.assert_close(grid.values(codes).T, found.tensor.dequantize())
    assert torch.equal(codes, found.codes)
    torch.testing.assert_close(
        grid.tensor(codes).dequantize(), found.tensor.dequantize(), rtol=1e-3, atol=1e-4
    )


def test_the_divergence_is_that_of_the_definition():
    wanted, other = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    p, q = wanted.softmax(-1), other.softmax(-1)
    torch.testing.assert_close(joint.divergence(wanted, other), (p * (p / q).log()).sum(-1).mean())
    assert float(joint.divergence(wanted, wanted)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_the_gradient_of_the_divergence_is_that_of_the_definition(monkeypatch, dtype, error):
    monkeypatch.setattr(joint._Divergence, "ENTRIES", 15)  # two rows at a time, the last one alone
    wanted, other = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    first, second = other.clone().requires_grad_(), other.double().requires_grad_()
    (3 * joint.divergence(wanted, first)).backward()
    p, q = wanted.double().softmax(-1), second.softmax(-1)
    (3 * (p * (p / q).log()).sum(-1).mean()).backward()
    assert first.grad.dtype == dtype
    torch.testing.assert_close(first.grad.double(), second.grad, rtol=error, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_a_step_goes_against_the_sign_of_the_gradient(transposed):
    weight = torch.randn(16, 80, generator=torch.Generator().manual_seed(0))
    learned = joint.Learned.begin(gptq.quantize([weight], Uniform(4, 32, False), torch.eye(80))[0])
    owner = torch.nn.Module()
    owner.weight = torch.nn.Parameter(
        torch.zeros(80, 16) if transposed else torch.zeros(16, 80), requires_grad=False
    )
    layer = joint.Layer("layer", learned, owner, "weight", transposed)
    layer.install()
    shown = owner.weight.T if transposed else owner.weight
    torch.testing.assert_close(shown, learned.tensor().dequantize())
    slope = torch.randn(16, 80, generator=torch.Generator().manual_seed(1))
    learned.weight().mul(slope).sum().backward()
    position, gain = learned.position.detach().clone(), learned.gain.detach().clone()
    with torch.no_grad():
        layer.update(slope.T if transposed else slope, 0.01)
    torch.testing.assert_close(learned.position.detach(), position - 0.01 * learned.position.grad.sign())
    torch.testing.assert_close(
        learned.gain.detach(), gain - 0.01 * joint.GAIN_RATE * learned.gain.grad.sign()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
def test_predictions_are_nearer_on_text_that_was_learned_from_than_after_gptq(kind, monkeypatch):
    monkeypatch.setattr(
        joint, "HELD_OUT", 0
    )  # random bytes have nothing in common that could be learned for other text
    exact = tiny.sharp(kind)(ids()).logits.flatten(0, 1)

    @torch.no_grad()
    def error(name: str) -> float:
        model = tiny.sharp(kind)
        quantize(model, parse(name), calibration=text())
        return float(joint.divergence(exact, model(ids()).logits.flatten(0, 1)))

    assert error("int3-g64-distilled") < 0.9 * error("int3-g64-gptq")


def test_what_is_worse_on_other_windows_is_undone(monkeypatch):
    monkeypatch.setattr(joint.JointRefiner, "_divergence", lambda self, *arguments: 1.0)
    left, right = tiny.model("llama"), tiny.model("llama")
    quantize(left, parse("int4-g32-gptq"), calibration=text())
    quantize(right, parse("int4-g32-distilled"), calibration=text(1e-6))
    with torch.no_grad():
        assert torch.equal(left(ids()).logits, right(ids()).logits)


def test_the_time_that_is_given_decides_the_number_of_steps():
    said: list[str] = []
    quantize(
        tiny.model("llama"),
        parse("int4-g64-distilled"),
        calibration=text(1e-6),
        progress=lambda done, total, what: said.append(what),
    )
    assert any(f"step {joint.FEWEST} of {joint.FEWEST}," in what for what in said)


@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_a_killed_run_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(joint, "STEPS", 6)
    options = {"work": tmp_path, "identity": "model"}

    def stop(done, total, what):
        if done == 1:
            raise KeyboardInterrupt

    recipe, whole, parts = parse("int4-g32-distilled"), tiny.sharp(kind), tiny.sharp(kind)
    quantize(whole, recipe, calibration=text())
    with pytest.raises(KeyboardInterrupt):
        quantize(parts, recipe, calibration=text(), progress=stop, **options)
    parts = tiny.sharp(kind)
    quantize(parts, recipe, calibration=text(), **options)
    with torch.no_grad():
        assert torch.equal(whole(ids()).logits, parts(ids()).logits)

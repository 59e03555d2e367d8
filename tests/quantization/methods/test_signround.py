"""Learned rounding on blocks of tiny models: its start, its gradients, and a loss below that of GPTQ."""

import pytest
import tiny
import torch

from qcore.formats.affine import Affine
from qcore.formats.k_quants import KQuant
from qcore.formats.signed import Signed
from qcore.formats.uniform import Uniform
from qcore.quantization.calibration import Calibration
from qcore.quantization.convert import quantize
from qcore.quantization.methods import gptq, signround
from qcore.quantization.methods.grid import search
from qcore.recipes import parse


def solution(format, columns: int = 64) -> gptq.Solution:
    weight = torch.randn(16, columns, generator=torch.Generator().manual_seed(0))
    return gptq.quantize([weight], format, torch.eye(columns))[0]


@pytest.mark.parametrize(
    "format",
    [Uniform(3, 32, False), Affine(4, 32), Signed(4), KQuant(3), KQuant(4)],
    ids=lambda format: format.label,
)
def test_it_begins_at_the_codes_it_was_given(format):
    found = solution(format, 256)
    learned = signround.Learned.begin(found)
    torch.testing.assert_close(learned.weight().detach(), found.tensor.dequantize())
    grid, codes = learned.result()
    assert torch.equal(codes, found.codes)
    assert ((learned.position - codes).abs() <= signround.LEAN + 1e-6).all()


@pytest.mark.parametrize("format", [Affine(4, 32), Signed(4), KQuant(4)], ids=lambda format: format.label)
def test_what_is_learned_is_what_is_stored(format):
    learned = signround.Learned.begin(solution(format, 256))
    learned.gain.data += 0.05 * torch.randn(learned.gain.shape, generator=torch.Generator().manual_seed(1))
    learned.position.data += torch.rand(learned.position.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(learned.weight().detach(), learned.tensor().dequantize())
    learned.weight().square().sum().backward()
    assert learned.gain.grad.any() and learned.position.grad.any()


def test_the_gain_of_an_affine_grid_stretches_it_about_its_middle():
    format = Affine(4, 32)
    learned = signround.Learned.begin(solution(format))
    before, slope = learned.weight().detach(), torch.randn(16, 64)
    grid = learned.grid
    middle = grid.spread(grid.minimum + 7.5 * grid.scale, 64).T
    (learned.weight() * slope).sum().backward()
    expected = ((before - middle) * slope).T.reshape(2, 32, -1).sum(1)
    torch.testing.assert_close(learned.gain.grad, expected)


def test_gradients_pass_the_rounding_as_if_it_were_not_there():
    format = Uniform(4, 32, True)
    learned = signround.Learned.begin(solution(format))
    learned.weight().sum().backward()
    grid = learned.grid
    torch.testing.assert_close(learned.position.grad, grid.spread(grid.scale, 64))
    units = grid.units(learned.result()[1])
    torch.testing.assert_close(
        learned.gain.grad, (units * grid.spread(grid.scale, 64)).view(2, 32, -1).sum(1)
    )


def test_a_step_goes_against_the_sign():
    learned = signround.Learned.begin(solution(Uniform(4, 32, False)))
    before = learned.position.detach().clone()
    learned.weight().square().sum().backward()
    signs = learned.position.grad.sign()
    learned.update(0.01)
    torch.testing.assert_close(learned.position.detach(), before - 0.01 * signs)


@pytest.mark.slow
@torch.no_grad()
def test_the_output_is_nearer_than_after_gptq():
    ids = torch.randint(0, 256, (8, 48), generator=torch.Generator().manual_seed(0))
    text = Calibration("random bytes", "0" * 64, ids)
    exact = tiny.sharp("llama")(ids).logits

    def error(name: str) -> float:
        model = tiny.sharp("llama")
        quantize(model, parse(name), calibration=text)
        return float((model(ids).logits - exact).square().mean())

    assert error("int3-g64-signround") < 0.8 * error("int3-g64-gptq")


def test_the_time_that_is_given_decides_the_number_of_steps():
    ids = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    said: list[str] = []
    text = Calibration("random bytes", "0" * 64, ids, minutes=1e-6)
    quantize(
        tiny.model("llama"),
        parse("int4-g64-signround"),
        calibration=text,
        progress=lambda done, total, what: said.append(what),
    )
    assert any(f"of {signround.FEWEST}" in what for what in said)


def test_searched_grids_hold_zero():
    grid = search(torch.randn(4, 64), Uniform(4, 32, False), torch.ones(64))
    assert (grid.round(torch.zeros(4), 0)[1] == 0).all()

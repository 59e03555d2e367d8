"""AWQ and Hessian-weighted k-means on one layer or block: what they leave unchanged, and by how much they
beat the plain method."""

import pytest
import tiny
import torch

from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.layers.select import select
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.folds import apply, find_fold
from qcore.quantization.methods import awq, descent, hessian, kmeans, rtn
from qcore.recipes import parse


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight (N, K), the Hessian and the mean |x| of inputs of which a few are large."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 128, generator=generator)
    inputs[:, ::16] *= 20
    return torch.randn(32, 128, generator=generator), 2 / 512 * inputs.T @ inputs, inputs.abs().mean(0)


@torch.no_grad()
def block_work(kind: str, name: str) -> BlockWork:
    model = tiny.model(kind)
    blocks = Blocks(model)
    own = [
        target
        for target in select(model, parse(name)).targets
        if target.module.startswith(f"{blocks.name}.0.")
    ]
    hidden = blocks.embed(torch.arange(32).reshape(1, 32))
    return BlockWork(blocks, 0, own, hidden, None, None, None, lambda what: None)


@pytest.mark.parametrize(("kind", "folds"), [("llama", 4), ("gpt2", 2)])
@torch.no_grad()
def test_folding_alone_leaves_the_block(kind, folds):
    work = block_work(kind, "int4-g32-awq")
    before, found = work.run(work.hidden[0]).hidden.clone(), 0
    for stage in work.stages:
        fold = find_fold(work, stage)
        if fold is None:
            continue
        found += 1
        weight = work.matrices(stage.targets[0])[0].clone()
        apply(work, stage, fold, torch.linspace(0.5, 3, int(fold.source.max()) + 1))
        assert not torch.allclose(work.matrices(stage.targets[0])[0], weight)
    assert found == folds
    torch.testing.assert_close(work.run(work.hidden[0]).hidden, before, rtol=1e-4, atol=1e-5)


def test_awq_error_is_well_below_rounding():
    (weight, moments, magnitude), format = layer(), Uniform(4, 32, False)
    alpha = awq.search_alpha([weight], [format], moments, magnitude)
    scale = awq.scales(magnitude, alpha)
    tensor = awq.clipped(weight * scale, format, moments.diagonal() / scale.square())
    rounded = descent.objective(weight.T, rtn.quantize(weight, format).dequantize().T, moments)
    assert alpha > 0
    assert descent.objective(weight.T, (tensor.dequantize() / scale).T, moments) < 0.6 * rounded


def test_awq_scales_follow_the_paper():
    scale = awq.scales(torch.tensor([1.0, 4.0, 16.0]), 0.5)
    torch.testing.assert_close(scale, torch.tensor([1.0, 2.0, 4.0]) / 2)  # √(max · min) of 1, 2, 4 is 2


@pytest.mark.parametrize(
    "format", [Codebook("kmeans4", None), Codebook("kmeans4", 32)], ids=["channel", "group"]
)
def test_weighted_tables_have_the_lower_weighted_error(format):
    weight, moments, _ = layer()
    importance = moments.diagonal()

    def error(tensor):
        return ((tensor.dequantize() - weight).square() * importance).sum()

    assert error(hessian.quantize(weight, format, importance)) < 0.9 * error(kmeans.quantize(weight, format))

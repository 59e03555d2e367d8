"""Streamed evaluation gives the figures of evaluation in memory, for every architecture and for the baseline
and recipes together."""

import gc

import pytest
import tiny
import torch

from qcore import library, recipes
from qcore.base.errors import InputError
from qcore.evaluation import Reference, evaluate
from qcore.formats.tensor import QuantizedTensor
from qcore.quantization import convert
from qcore.streaming import evaluating
from qcore.streaming.evaluating import evaluate_streamed

pytestmark = pytest.mark.slow

RECIPES = ("int4-g64", "nf4-g32", "int4-g32-head8", "kmeans4")


def ids(count: int = 300) -> torch.Tensor:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", tiny.CONFIGS)
def test_figures_are_those_of_evaluation_in_memory(config, tmp_path):
    tiny.checkpoint(config, tmp_path / "model")
    checkpoint, chosen = library.resolve(tmp_path / "model"), [recipes.parse(name) for name in RECIPES]
    found = evaluate_streamed(checkpoint, chosen, ids(), window=64, stride=48)
    assert list(found) == ["fp32", *RECIPES]
    base = library.load(checkpoint).model
    expected = evaluate(
        base,
        ids(),
        window=64,
        stride=48,
        record=tmp_path / "reference.safetensors",
        checkpoint=checkpoint.folder,
    )
    assert found["fp32"].perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    for recipe in chosen:
        model = library.load(checkpoint).model
        convert.quantize(model, recipe)
        reference = Reference.open(tmp_path / "reference.safetensors")
        expected = evaluate(model, ids(), window=64, stride=48, reference=reference)
        got = found[recipe.name]
        assert got.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
        assert got.divergence.kl_mean == pytest.approx(expected.divergence.kl_mean, rel=1e-3, abs=1e-6)
        assert got.window_tokens == expected.window_tokens


@pytest.mark.parametrize("config", ["llama", "moe"])
def test_nothing_of_a_block_outlives_it(config, tmp_path, monkeypatch):
    """The stand-in of a block refers neither to the block nor to a copy of the model, which would add up for
    a large model."""
    alive, advance = [], evaluating._Model.advance

    def living() -> tuple[int, int]:
        kinds = [type(each) for each in gc.get_objects()]
        return kinds.count(QuantizedTensor), kinds.count(evaluating.Frame)

    def count(self, position):
        advance(self, position)
        alive.append(living())

    monkeypatch.setattr(evaluating._Model, "advance", count)
    tiny.checkpoint(config, tmp_path / "model")
    gc.collect()
    codes, frames = living()
    evaluate_streamed(
        library.resolve(tmp_path / "model"),
        [recipes.parse("int4-g64"), recipes.parse("nf4-g32")],
        ids(),
        window=64,
    )
    assert alive == [(codes, frames + 3)] * (3 * 2)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    tiny.checkpoint("llama", tmp_path / "model")
    checkpoint = library.resolve(tmp_path / "model")
    with pytest.raises(InputError, match="reads calibration text"):
        evaluate_streamed(checkpoint, [recipes.parse("int4-g64-gptq")], ids(), window=64)

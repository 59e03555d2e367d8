"""The figures of the page Learn equal those of the engine's own code."""

import math

import pytest
import tiny
import torch

from qcore import library, recipes
from qcore.base.errors import InputError
from qcore.formats.uniform import Uniform
from qcore.kernels import dispatch
from qcore.quantization import methods
from qcore.training.teacher import soft_loss
from qcore.verbs import layer_errors, lessons
from qcore.verbs import lesson_weights as weights
from qcore.verbs.lesson_predictions import predictions

WEIGHT = torch.randn(24, 160, generator=torch.Generator().manual_seed(0)) * 0.05
NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return library.resolve(tiny.checkpoint("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("name", ["int4-g64", "int4-g64-sym", "nf4-g64-dq", "kmeans4", "int8", "int3-g32"])
def test_error_and_bits_are_those_of_the_page_layers(name, checkpoint):
    recipe = recipes.parse(name)
    wanted = next(error for error in layer_errors.errors(checkpoint, recipe) if error.name == NAME)
    sample = lessons.read(checkpoint, NAME)
    found = lessons.rounded(sample.weight, recipe.weights)
    assert sample.is_whole and sample.weight.shape == tuple(wanted.shape)
    assert found.relative_error == pytest.approx(wanted.relative_error, rel=1e-5)
    assert found.snr_db == pytest.approx(wanted.snr_db, abs=1e-4)
    assert found.bits_per_weight == wanted.bits_per_weight == pytest.approx(sum(found.parts.values()))


def test_a_gpt2_weight_is_turned_so_that_rows_are_outputs(tmp_path):
    checkpoint = library.resolve(tiny.checkpoint("gpt2", tmp_path))
    name = next(name for name in lessons.names(checkpoint) if "c_fc" in name)
    assert lessons.read(checkpoint, name).weight.shape == (256, 64)
    with pytest.raises(InputError, match="Unknown layer"):
        lessons.read(checkpoint, "model.nothing")


def test_a_large_matrix_is_cut_to_its_first_rows(checkpoint, monkeypatch):
    monkeypatch.setattr(weights, "LARGEST", 10 * 128)
    sample = lessons.read(checkpoint, NAME)
    assert sample.weight.shape == (10, 128) and sample.rows == 64 and not sample.is_whole


@pytest.mark.parametrize("name", ["int4-g64", "int3-g32-sym", "nf4-g64", "kmeans4", "int8"])
def test_the_group_shown_is_the_weights_own(name):
    format = recipes.parse(name).weights
    stored = methods.quantize(WEIGHT, format, format.method)
    size = format.group_size or 160
    each = -(-160 // size)
    for place in (0, each, 3 * each + each - 1):
        group = lessons.rounded(WEIGHT, format, place).group
        row, start = place // each, place % each * size
        assert group.before == tuple(WEIGHT[row, start : start + size].tolist())
        assert group.after == tuple(stored.dequantize()[row, start : start + size].tolist())
        assert all(min(abs(value - grid) for grid in group.grid) < 1e-6 for value in group.after)


def test_places_are_what_they_are_called():
    weight = WEIGHT.clone()
    weight[5, 70] = 3.0
    weight[9, :64] = weight[9, :64].abs() + 0.1
    found = weights.places(weight, 64)
    assert found["outlier"] == 5 * 3 + 1 and found["lopsided"] in (5 * 3 + 1, 9 * 3)
    assert weights.places(WEIGHT[:, :20], 64) == {"typical": 0, "outlier": 0, "lopsided": 0}


def test_group_sizes_cost_what_the_format_says_and_smaller_ones_are_closer():
    found = lessons.group_sizes(WEIGHT, 4)
    assert list(found) == [8, 16, 32, 64, 128, None]
    for size, one in found.items():
        assert one.bits_per_weight == 8 * Uniform(4, size, False).nbytes(24, 160) / WEIGHT.numel()
    assert found[8].relative_error < found[32].relative_error < found[128].relative_error


def test_unclipped_is_rounding_to_nearest_and_the_parts_add_up():
    format = Uniform(3, 32, True)
    plain = lessons.rounded(WEIGHT, format, 4)
    whole = lessons.clipped(WEIGHT, format, 1.0, 4)
    assert whole.relative_error == plain.relative_error and whole.group == plain.group
    assert whole.weights_cut == 0 and whole.cut == 0
    cut = lessons.clipped(WEIGHT, format, 0.6)
    assert 0 < cut.weights_cut < 0.5 and cut.rounding < whole.rounding
    assert math.hypot(cut.cut, cut.rounding) == pytest.approx(cut.relative_error, rel=1e-4)


def test_an_outlier_takes_the_grid_from_the_others():
    format = Uniform(4, 64, True)
    plain, large = (lessons.outlier(WEIGHT, format, factor, 1) for factor in (1, 40))
    stored = methods.quantize(WEIGHT[:1, 64:128], format, "rtn").dequantize()
    others = torch.arange(64) != int(WEIGHT[0, 64:128].abs().argmax())
    wanted = weights.relative_error(WEIGHT[0, 64:128][others], stored[0, others])
    assert plain.others_error == pytest.approx(wanted)
    assert large.others_error == large.lost == 1.0


def test_activations_are_those_of_the_kernels():
    format = Uniform(8, None, True)
    found = lessons.activations(WEIGHT, format, 30)
    x = torch.randn(64, 160, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 30
    stored = methods.quantize(WEIGHT, format, "rtn")
    for mode, value in (("fp32", found.weights_only), ("int8", found.token)):
        assert weights.relative_error(x @ WEIGHT.T, dispatch.linear(x, stored, None, mode)) == pytest.approx(
            value, rel=1e-4
        )
    assert found.weights_only < found.token < found.all_tokens


def test_learning_begins_at_rounding_and_never_gets_worse():
    found = lessons.learn(WEIGHT, Uniform(3, 32, False), 30)
    assert list(found.steps) == sorted(found.steps, reverse=True) and found.final < 0.9 * found.rounded
    assert 0 < found.moved < 0.5
    assert lessons.learn(WEIGHT, Uniform(3, 32, False), 0).final == found.rounded


def test_pruning_counts_what_sparse_files_hold():
    found = lessons.prune(WEIGHT, "magnitude", 0.5)
    assert found.amount == pytest.approx(0.5) and found.dense_bits == 16
    assert found.sparse_bits == 16 * 0.5 + 1 and found.break_even == 1 / 16
    kept = WEIGHT.abs() >= WEIGHT.abs().flatten().sort().values[WEIGHT.numel() // 2]
    assert found.relative_error == pytest.approx(weights.relative_error(WEIGHT, WEIGHT * kept))
    assert max(found.went) <= min(found.stayed)
    assert lessons.prune(WEIGHT, "2:4", 0.5, 4).amount == 0.5
    assert lessons.prune(WEIGHT, "magnitude", 0.0, 4).sparse_bits == 5


def test_a_teacher_is_the_model_and_the_loss_is_the_trainers(checkpoint):
    asked = predictions(checkpoint, "hello")
    loaded = library.load(checkpoint)
    with torch.no_grad():
        logits = loaded.model(input_ids=loaded.tokenizer("hello", return_tensors="pt")["input_ids"]).logits[
            0, -1
        ]
    assert torch.allclose(asked.teacher, logits, atol=1e-5) and asked.layers == (2, 1)
    for temperature in (1.0, 3.0):
        found = lessons.taught(asked.teacher, asked.student, temperature)
        assert found.teacher == pytest.approx(
            (logits / temperature).softmax(-1)[list(found.tokens)].tolist(), rel=1e-4
        )
        assert found.loss == pytest.approx(
            float(soft_loss(asked.teacher[None, None], asked.student[None, None], temperature))
        )
        assert set(found.tokens) == set(asked.words) and sum(found.teacher) + found.others == pytest.approx(1)
    assert (
        lessons.taught(asked.teacher, asked.student, 3.0).entropy
        > lessons.taught(asked.teacher, asked.student, 1.0).entropy
    )
    with pytest.raises(InputError, match="empty"):
        predictions(checkpoint, "")

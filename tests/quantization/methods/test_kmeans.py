import pytest
import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.quantization import methods
from qcore.quantization.methods.kmeans import assign, lloyd


def literal_lloyd(values: torch.Tensor, centroids: torch.Tensor, rounds: int) -> torch.Tensor:
    """Run Lloyd's algorithm on one row: assign values to the nearest centroid, set each centroid to its
    mean."""
    for _ in range(rounds):
        nearest = (values.unsqueeze(1) - centroids).abs().argmin(1)
        centroids = torch.stack(
            [values[nearest == i].mean() if (nearest == i).any() else centroids[i] for i in range(16)]
        )
    return centroids


def test_one_more_literal_round_changes_nothing_at_convergence():
    values = torch.randn(3, 400)
    table = lloyd(values, rounds=500)
    for row, centroids in zip(values, table, strict=True):
        torch.testing.assert_close(literal_lloyd(row, centroids, 1), centroids, atol=1e-6, rtol=1e-5)


def test_each_round_lowers_the_error():
    values = torch.randn(2, 500)
    errors = []
    for rounds in (0, 1, 5, 20):
        table = lloyd(values, rounds)
        errors.append((table.gather(1, assign(values, table).long()) - values).square().sum().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


def test_sixteen_distinct_values_are_found_exactly():
    values = (torch.arange(16.0) / 8).repeat(4, 8)[:, torch.randperm(128)]
    assert torch.equal(methods.quantize(values, Codebook("kmeans4", None), "kmeans").dequantize(), values)


@pytest.mark.parametrize("size", [None, 64], ids=["channel", "g64"])
def test_a_learned_table_beats_the_fixed_one_on_weights_that_are_not_normal(size):
    weight = torch.rand(32, 256).square()  # one-sided: half of nf4's table is wasted on it
    learned = methods.quantize(weight, Codebook("kmeans4", size), "kmeans").dequantize()
    fixed = methods.quantize(weight, Codebook("nf4", 64), "rtn").dequantize()
    assert (learned - weight).norm() < 0.6 * (fixed - weight).norm()


@pytest.mark.row("9")
def test_constant_and_zero_rows_are_exact():
    weight = torch.zeros(3, 64)
    weight[1] = 0.5
    for size in (None, 32):
        assert torch.equal(methods.quantize(weight, Codebook("kmeans4", size), "kmeans").dequantize(), weight)


def test_a_uniform_format_is_refused():
    with pytest.raises(InputError, match="kmeans4"):
        methods.quantize(torch.randn(8, 64), Uniform(4, 64, False), "kmeans")


def test_an_unknown_method_gets_a_suggestion():
    with pytest.raises(InputError, match="Did you mean kmeans"):
        methods.quantize(torch.randn(8, 64), Uniform(4, 64, False), "kmean")

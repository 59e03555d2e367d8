"""KL and flips against float64 arithmetic and cases counted by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError, RunError
from qcore.evaluation.divergence import DivergenceMeter, LogProbabilities, kl


def random_logits(rows: int, vocabulary: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def exact(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    p, q = base.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 1.0, 10.0])
def test_agrees_with_float64(noise):
    base = random_logits(8, 5000, 0)
    other = base + noise * random_logits(8, 5000, 1, scale=1)
    expected = exact(base, other)
    torch.testing.assert_close(
        kl(LogProbabilities(base.clone()), LogProbabilities(other.clone())), expected, rtol=1e-4, atol=3e-8
    )


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_never_negative_and_exactly_zero_for_equal_logits(seed, shift, scale):
    base = random_logits(3, 40, seed, scale)
    assert kl(LogProbabilities(base.clone()), LogProbabilities(base.clone())).tolist() == [0.0] * 3
    moved = kl(LogProbabilities(base.clone()), LogProbabilities(base + shift))
    assert (moved >= 0).all() and (
        moved < 1e-4 * scale
    ).all()  # a constant added to all logits changes nothing


def test_words_that_are_ruled_out():
    base = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert kl(LogProbabilities(base.clone()), LogProbabilities(base.clone())).item() == 0
    wider = torch.tensor([[0.0, 0.0, 0.0]])
    assert kl(LogProbabilities(base.clone()), LogProbabilities(wider.clone())).item() == pytest.approx(
        torch.tensor(1.5).log().item()
    )
    with pytest.raises(RunError, match="rules out"):
        kl(LogProbabilities(wider.clone()), LogProbabilities(base.clone()))


def test_nll_of_nan_is_an_error():
    logits = torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    with pytest.raises(RunError, match="1 of 2 tokens"):
        LogProbabilities(logits).nll(torch.tensor([0, 0]))


def test_another_vocabulary_is_an_error():
    with pytest.raises(InputError, match="3 words and this model's has 4"):
        kl(LogProbabilities(torch.zeros(1, 3)), LogProbabilities(torch.zeros(1, 4)))


def one_hot(*tokens: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), 4).float()


def test_flips_counted_by_hand():
    meter = DivergenceMeter()
    targets = torch.tensor([0, 0, 0, 0, 0])
    base, other = (
        one_hot(0, 0, 1, 1, 2),
        one_hot(0, 1, 0, 2, 2),
    )  # agreed, harmful, beneficial, neutral, agreed
    meter.add(LogProbabilities(base.clone()), LogProbabilities(other.clone()), targets)
    meter.close_window()
    result = meter.result()
    assert (result.top1_agreement, result.harmful_flips, result.beneficial_flips, result.neutral_flips) == (
        0.4,
        1,
        1,
        1,
    )
    each = exact(one_hot(0), one_hot(1)).item()
    assert (
        result.kl_mean == pytest.approx(0.6 * each)
        and result.kl_max == pytest.approx(each)
        and result.kl_median == pytest.approx(each)
    )
    assert result.window_kl == [pytest.approx(3 * each)]
    assert result.window_base_nll == [
        pytest.approx(-sum(one_hot(t).log_softmax(-1)[0, 0].item() for t in (0, 0, 1, 1, 2)))
    ]


def test_statistics_over_windows_are_those_of_all_tokens():
    meter = DivergenceMeter()
    base, other = random_logits(100, 30, 2), random_logits(100, 30, 3)
    for start in range(0, 100, 40):
        rows = slice(start, start + 40)
        meter.add(
            LogProbabilities(base[rows].clone()), LogProbabilities(other[rows].clone()), base[rows].argmax(-1)
        )
        meter.close_window()
    result, expected = meter.result(), exact(base, other)
    for value, q in (
        (result.kl_median, 0.5),
        (result.kl_p90, 0.9),
        (result.kl_p99, 0.99),
        (result.kl_max, 1.0),
    ):
        assert value == pytest.approx(torch.quantile(expected, q).item(), rel=1e-5)
    assert result.kl_mean == pytest.approx(expected.mean().item(), rel=1e-6)
    assert (
        sum(result.window_kl) == pytest.approx(expected.sum().item(), rel=1e-6) and len(result.window_kl) == 3
    )
    assert result.beneficial_flips == result.neutral_flips == 0 and result.harmful_flips == round(
        100 * (1 - result.top1_agreement)
    )

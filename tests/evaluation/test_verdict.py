"""Verdicts against intervals computed by hand, against simulated error rates, and for every outcome."""

import math
import random
import statistics
import subprocess
import sys

import pytest

from qcore.base.errors import InputError
from qcore.evaluation.verdict import judge, verdict

EVEN = [100] * 10


def shifted(by, spread=0.0, count=10, tokens=100):
    """Return sums of NLL of a baseline, and of a model that is `by` nats per token worse, alternately
    `spread` more and less."""
    base = [300.0 + 7 * i for i in range(count)]
    return base, [each + tokens * (by + (spread if i % 2 else -spread)) for i, each in enumerate(base)]


def test_for_equal_windows_it_is_the_paired_t_interval():
    base = [310.0, 290.0, 305.0, 330.0, 285.0]
    other = [311.5, 292.5, 305.5, 334.0, 286.5]
    differences = [0.015, 0.025, 0.005, 0.04, 0.015]
    mean, error = 0.02, statistics.stdev(differences) / math.sqrt(5)
    found = verdict(base, other, [100] * 5, kl=[1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * error
    assert found.ratio.estimate == pytest.approx(math.exp(mean))
    assert (found.ratio.low, found.ratio.high) == pytest.approx(
        (math.exp(mean - half), math.exp(mean + half)), rel=1e-6
    )
    assert found.kl.estimate == pytest.approx(0.03)
    assert found.kl.high - found.kl.estimate == pytest.approx(2.776445 * math.sqrt(2.5 / 5) / 100, rel=1e-6)
    assert (found.tokens, found.windows) == (500, 5)


def test_identical_models_are_equivalent():
    base, _ = shifted(0)
    found = verdict(base, base, EVEN, kl=[0.0] * 10, flips=(0, 0))
    assert (found.outcome, found.ratio.low, found.ratio.high, found.flips.p, found.tost_p) == (
        "equivalent",
        1,
        1,
        1,
        0,
    )
    assert verdict(base[:1], base[:1], [100]).outcome == "equivalent"


@pytest.mark.parametrize(
    ("by", "spread", "outcome", "begins"),
    [
        (0.001, 0.001, "equivalent", "Equivalent within 1 %: perplexity is 0.1 % higher"),
        (
            0.2,
            0.01,
            "worse",
            "Worse, by more than 1 %: perplexity is 22 % higher than the baseline's (95 % interval: ",
        ),
        (1.2, 0.01, "worse", "Worse, by more than 1 %: perplexity is 3.32 times the baseline's"),
        (-0.2, 0.01, "better", "Better, by more than 1 %: perplexity is 18 % lower"),
        (0.005, 0.05, "undecided", "Undecided whether it is within 1 %: perplexity is 0.5 % higher"),
    ],
)
def test_outcomes_and_sentences(by, spread, outcome, begins):
    found = verdict(*shifted(by, spread), EVEN, flips=(9, 3))
    assert found.outcome == outcome and found.sentence.startswith(begins)
    assert (found.tokens_needed is not None) == (outcome == "undecided")
    assert (found.tost_p < 0.025) == (outcome == "equivalent")
    assert "9 harmful and 3 beneficial flips" in found.details


def test_a_wider_margin_makes_equivalent():
    pair = shifted(0.02, 0.001)
    assert verdict(*pair, EVEN, margin=0.01).outcome == "worse"
    assert verdict(*pair, EVEN, margin=0.05).outcome == "equivalent"


def test_the_tokens_that_were_promised_decide():
    first = verdict(*shifted(0.005, 0.02), EVEN)
    assert first.outcome == "undecided" and 1000 < first.tokens_needed < 100_000
    count = math.ceil(first.tokens_needed / 200) * 2
    assert verdict(*shifted(0.005, 0.02, count), [100] * count).outcome == "equivalent"


def test_one_window_is_undecided():
    found = verdict([300.0], [330.0], [100])
    assert (found.outcome, found.ratio.low, found.tost_p) == ("undecided", None, None)
    assert "one window" in found.sentence and "800 tokens" in found.sentence
    assert (
        verdict([300.0, 3.0], [330.0, 2.0], [100, 1]).outcome == "undecided"
    )  # a second window of little weight


def test_a_short_last_window_counts_as_what_it_is():
    base, other = shifted(0.2, 0.01)
    found = verdict([*base, 3.0], [*other, 9.0], [*EVEN, 1])
    plain = verdict(base, other, EVEN)
    assert found.ratio.estimate == pytest.approx(math.exp((10 * 100 * 0.2 + 6) / 1001))
    assert found.ratio.low < plain.ratio.estimate < found.ratio.high < 1.1 * plain.ratio.high


def test_95_percent_of_the_intervals_hold_the_truth():
    draw, truth, rounds = random.Random(0), 0.01, 1000
    tokens = [200] * 11 + [80]
    held = 0
    for _ in range(rounds):
        base = [
            draw.gauss(3.0, 0.4) * count for count in tokens
        ]  # hard and easy passages, the same for both models
        after = [
            each + draw.gauss(truth * count, 0.3 * math.sqrt(count))
            for each, count in zip(base, tokens, strict=True)
        ]
        found = verdict(base, after, tokens).ratio
        held += found.low <= math.exp(truth) <= found.high
    assert 0.93 <= held / rounds <= 0.97


def rate(outcome, truth, rounds=1000, seed=1, windows=10, spread=0.1):
    """Return how often the verdict is `outcome` when the true logarithm of the ratio is `truth`."""
    draw, tokens, found = random.Random(seed), [200] * windows, 0
    for _ in range(rounds):
        base = [draw.gauss(3.0, 0.4) * count for count in tokens]
        after = [
            each + draw.gauss(truth * count, spread * math.sqrt(count))
            for each, count in zip(base, tokens, strict=True)
        ]
        found += verdict(base, after, tokens).outcome == outcome
    return found / rounds


@pytest.mark.parametrize("edge", [math.log1p(0.01), -math.log1p(0.01)], ids=["above", "below"])
def test_a_model_on_the_edge_is_seldom_called_equivalent_and_seldom_different(edge):
    """The error rates of the one-sided tests: at most 2.5 % each, and not far below it."""
    for outcome in ("equivalent", "worse" if edge > 0 else "better"):
        assert 0.01 <= rate(outcome, edge, 1500) <= 0.037  # 2.5 %, and three standard errors of 1,500 draws


def test_enough_tokens_find_out():
    assert rate("equivalent", 0.001, windows=60, rounds=300) > 0.98
    assert rate("worse", 0.03, windows=60, rounds=300) > 0.98
    assert rate("undecided", 0.001, windows=2, rounds=300) > 0.9


def test_the_promised_number_of_tokens_decides_about_four_times_in_five():
    """Plan from one sample with a true spread, then draw that many windows repeatedly."""
    truth, spread = 0.004, 0.2
    first = verdict(*shifted(truth, spread / math.sqrt(200), 10, 200), [200] * 10)
    windows = round(first.tokens_needed / 200)
    assert first.outcome == "undecided" and 10 < windows < 200
    assert 0.7 <= rate("equivalent", truth, 500, windows=windows, spread=spread) <= 0.93


def test_judge_takes_what_an_evaluation_holds():
    base, other = shifted(0.2, 0.01)
    conditions = {"window": 100, "stride": 100, "window_tokens": EVEN}
    divergence = {"window_kl": [1.0] * 10, "harmful_flips": 9, "beneficial_flips": 3, "window_base_nll": base}
    baseline = {**conditions, "window_nll": base, "divergence": None}
    paired = judge({**conditions, "window_nll": other, "divergence": divergence})
    assert paired.outcome == "worse" and paired.to_dict()["flips"]["harmful"] == 9
    old = {
        key: value for key, value in divergence.items() if key != "window_base_nll"
    }  # a row stored by an earlier version
    assert judge({**conditions, "window_nll": other, "divergence": old}, baseline) == paired
    assert judge({**conditions, "window_nll": other, "divergence": None}, baseline).flips is None
    with pytest.raises(InputError, match="no baseline"):
        judge({**conditions, "window_nll": other, "divergence": old})
    with pytest.raises(InputError, match="same windows"):
        judge({**conditions, "window_nll": other, "divergence": old}, {**baseline, "stride": 50})


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (([1.0], [1.0, 2.0], [5]), {}, "one number for each window"),
        (([], [], []), {}, "one number for each window"),
        (([1.0, 1.0], [1.0, math.nan], [5, 5]), {}, "finite"),
        (([1.0, 1.0], [1.0, None], [5, 5]), {}, "finite"),
        (([1.0, 1.0], [1.0, 2.0], [5, 0]), {}, "finite"),
        (([1.0, 1.0], [1.0, 2.0], [5, 5]), {"margin": 0}, "margin"),
        (([1.0, 1.0], [1.0, 2.0], [5, 5]), {"margin": math.nan}, "margin"),
        (([1.0, 1.0], [1.0, 2.0], [5, 5]), {"kl": [1.0]}, "one number for each window"),
    ],
)
def test_refused(arguments, options, match):
    with pytest.raises(InputError, match=match):
        verdict(*arguments, **options)


def test_verdicts_load_no_torch():
    code = "import sys, qcore.evaluation.verdict; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )

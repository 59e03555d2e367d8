"""The recommendation: who wins, what binds, who comes second, and what is said where something is unknown."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError
from qcore.planning.recommend import Candidate, Needs, recommend

GB = 1_000_000_000


def candidate(recipe, gigabytes, decode=None, kl=None, kv="fp32", exactness=0, ratio=None):
    return Candidate(recipe, kv, int(gigabytes * GB), decode, kl, ratio, exactness)


FP32, INT8, INT4, INT2 = (
    candidate("fp32", 8, 5, 0.0),
    candidate("int8", 3, 15, 0.003),
    candidate("int4", 2, 25, 0.3),
    candidate("int2", 1, 40, 9.0),
)
ALL = (FP32, INT8, INT4, INT2)


def test_losses_that_do_not_matter_count_as_equal_and_speed_decides():
    found = recommend(ALL, Needs(100 * GB))
    assert (found.best, found.runner_up, found.binding) == (INT8, FP32, None)
    assert found.sentence == (
        "Take int8 with a fp32 cache: no recipe that fits loses less, "
        "and of those that lose as little it is the fastest. "
        "Next after it: fp32 with a fp32 cache."
    )


def test_memory_binds():
    found = recommend(ALL, Needs(int(2.5 * GB)))
    assert (found.best, found.runner_up, found.binding) == (INT4, INT2, "memory")
    assert (
        "int8 with a fp32 cache loses less, but it needs 3.00 GB where 2.50 GB are allowed" in found.sentence
    )


def test_speed_binds():
    found = recommend(ALL, Needs(100 * GB, min_tokens_per_second=20))
    assert (found.best, found.binding) == (INT4, "decode speed")
    assert (
        "int8 with a fp32 cache loses less, but it decodes 15 tokens per second where 20 are wanted"
        in found.sentence
    )


def test_an_allowed_loss_buys_speed():
    found = recommend(ALL, Needs(100 * GB, max_kl=0.5))
    assert (found.best, found.runner_up) == (INT4, INT8)
    assert found.binding is None and recommend(ALL, Needs(100 * GB, max_kl=10)).best == INT2


def test_loss_binds_when_something_faster_is_kept_out():
    slow = candidate("nf4", 2, 20, 0.2, ratio=1.4)
    found = recommend((slow, INT8), Needs(100 * GB, max_ratio=1.1))
    assert found.best == INT8 and found.runner_up is None


@pytest.mark.parametrize(
    "needs, binding, words",
    [
        (Needs(GB // 2), "memory", "it needs 1.00 GB where 0.50 GB are allowed"),
        (
            Needs(100 * GB, min_tokens_per_second=100),
            "decode speed",
            "tokens per second where 100 are wanted",
        ),
    ],
)
def test_nothing_meets_the_needs(needs, binding, words):
    found = recommend(ALL, needs)
    assert (found.best, found.runner_up, found.binding) == (None, None, binding)
    assert found.sentence.startswith("None of the recipes meets all of it.") and words in found.sentence


def test_nothing_was_given():
    assert "No recipe was given" in recommend((), Needs(GB)).sentence


def test_a_less_exact_cache_is_taken_only_if_it_must_be():
    half = candidate("int8", 2.5, 15, 0.003, "fp16", 1)
    assert recommend((half, INT8), Needs(100 * GB)).best == INT8
    found = recommend((half, INT8), Needs(int(2.6 * GB)))
    assert (found.best, found.binding) == (half, "memory") and "keeps a more exact cache" in found.sentence


def test_what_is_not_known_is_said_and_goes_behind():
    unknown = candidate("new", 1, None, 0.0)
    needs = Needs(100 * GB, min_tokens_per_second=10)
    assert recommend((unknown, INT4), needs).best == INT4
    assert "Its decode speed is not known" in recommend((unknown,), needs).sentence
    assert "its loss is not known" in recommend((candidate("new", 1),), Needs(GB)).sentence


@pytest.mark.parametrize(
    "wrong",
    [{"min_tokens_per_second": -1}, {"max_kl": math.nan}, {"max_kl": -0.1}, {"max_ratio": 0.9}],
    ids=str,
)
def test_needs_out_of_range(wrong):
    with pytest.raises(InputError, match="must be a number of at least"):
        Needs(GB, **wrong)


maybe = st.none() | st.floats(0, 100)


@given(
    st.lists(st.builds(candidate, st.sampled_from("abcdef"), st.floats(0.1, 10), maybe, maybe), max_size=8),
    st.floats(0.1, 10),
    maybe,
    maybe,
)
def test_the_best_meets_every_need_and_none_better_does(candidates, memory, least, most):
    needs = Needs(int(memory * GB), least, most)
    found = recommend(candidates, needs)
    good = [each for each in candidates if not each.breaks(needs)]
    assert (found.best is None) == (not good)
    if good:
        assert found.best in good and all(found.best.order(needs) <= each.order(needs) for each in good)
        assert found.runner_up is None or (
            found.runner_up in good and found.runner_up.recipe != found.best.recipe
        )
        better = [
            each for each in candidates if each.breaks(needs) and each.order(needs) < found.best.order(needs)
        ]
        assert (found.binding is None) == (not better)

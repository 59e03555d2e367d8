import pytest

from qcore.jobs.estimate import PHASES, Estimate, guess
from qcore.recipes.spec import RunSpec

WORK = [("start", "load", "quality")] * 2
SECONDS = {"start": 2.0, "load": 3.0, "quality": 5.0}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def estimate(clock):
    return Estimate(WORK, SECONDS, clock)


def test_before_anything_all_is_left(estimate):
    assert estimate.eta == 20.0 and estimate.fraction == 0.0


def test_time_passes_within_a_phase(estimate, clock):
    estimate.start(0)
    clock.now += 1
    assert estimate.eta == 19.0 and estimate.fraction == pytest.approx(1 / 20)
    clock.now += 3  # two seconds more than expected: a tenth of the phase still counts as remaining
    assert estimate.eta == pytest.approx(0.2 + 18)


def test_a_phase_that_counts_is_extrapolated(estimate, clock):
    estimate.start(0)
    estimate.enter("load")
    clock.now += 4
    estimate.step(1, 4)
    assert estimate.eta == pytest.approx(
        12 + 5 + (0 + 3 + 5)
    )  # the first start took no time, so the next is expected to take none


def test_what_was_measured_replaces_what_was_expected(estimate, clock):
    estimate.start(0)
    for phase, seconds in (("start", 1), ("load", 1), ("quality", 8)):
        estimate.enter(phase)
        clock.now += seconds
    estimate.end(0, complete=True)
    assert estimate.seconds == {"start": 1, "load": 1, "quality": 8}
    assert estimate.eta == 10.0 and estimate.fraction == 0.5
    estimate.start(1)
    assert estimate.eta == 10.0
    clock.now += 10
    estimate.end(1, complete=True)
    assert estimate.eta == 0.0 and estimate.fraction == 1.0


def test_a_child_that_failed_teaches_nothing(estimate, clock):
    estimate.start(0)
    estimate.enter("load")
    clock.now += 100
    estimate.end(0, complete=False)
    assert estimate.eta == 8.0  # the start took no time


def test_the_fraction_never_goes_back(estimate, clock):
    estimate.start(0)
    estimate.enter("quality")
    clock.now += 4
    before = estimate.fraction
    estimate.step(1, 1000)
    assert estimate.fraction == before


def test_a_guess_covers_every_phase_and_grows_with_the_work():
    small, large = (guess(RunSpec("m", "int8", tokens=tokens).to_dict()) for tokens in (512, 4096))
    assert set(small) == set(PHASES) and large["quality"] == 8 * small["quality"]
    assert guess(RunSpec("m", "int8", generate=False).to_dict())["prompts"] == 0

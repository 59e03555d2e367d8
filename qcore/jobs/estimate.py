"""Progress and remaining time of a run, from the time that each phase took so far.

Every recipe runs the same phases. The expected time of a phase starts as a guess (from an earlier run of the
same model if there is one) and becomes the mean of the measured times; a phase that counts its steps is
extrapolated from its own rate.
"""

import time
from collections.abc import Callable
from typing import Protocol

PHASES = {
    "start": "starting",
    "load": "loading the model",
    "quantize": "quantizing",
    "speed": "measuring speed",
    "quality": "scoring the text",
    "questions": "asking the questions",
    "prompts": "continuing the prompts",
}
PREFILL, DECODE = 300.0, 12.0  # tokens per second, first guess: 135 million parameters on two cores
QUESTIONS = 10.0  # seconds for the packaged questions
LEAST_SHARE = 0.1  # of the expected time counts as remaining once a phase exceeds it


def guess(spec: dict) -> dict[str, float]:
    """Return a guess of the seconds per phase for a request (`RunSpec.to_dict()`) without earlier
    measurements."""
    speed = (spec["repeats"] + 1) * (spec["prompt_tokens"] / PREFILL + spec["new_tokens"] / DECODE)
    return {
        "start": 6.0,
        "load": 3.0,
        "quantize": 5.0,
        "speed": speed,
        "quality": spec["tokens"] / PREFILL * (spec["window"] / (spec["stride"] or spec["window"])),
        "questions": QUESTIONS if spec.get("choices") else 0.0,
        "prompts": 20 * spec["generate_tokens"] / DECODE if spec["generate"] else 0.0,
    }


class Account(Protocol):
    """Progress of a job, as its worker tracks it."""

    @property
    def fraction(self) -> float:
        """Completed share of the job, 0 … 1."""

    @property
    def eta(self) -> float | None:
        """Expected remaining seconds of the job, None while unknown."""

    def start(self, item: int) -> None:
        """Record that task number `item` starts."""

    def enter(self, phase: str) -> None:
        """Record that the task enters `phase`."""

    def step(self, done: int, total: int) -> None:
        """Record that the current phase has completed `done` of `total` steps."""

    def end(self, item: int, *, complete: bool) -> None:
        """Record that task number `item` has ended."""


class Estimate:
    """Expected course of a run: `work` lists the phases of each child process in order, `seconds` the
    expected time per phase."""

    def __init__(
        self,
        work: list[tuple[str, ...]],
        seconds: dict[str, float],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._work = work
        self._expected = dict(seconds)
        self._clock = clock
        self._began = clock()
        self._measured: dict[str, list[float]] = {}
        self._item, self._since = -1, clock()
        self._phase: str | None = None
        self._done, self._total = 0, 0
        self._fraction = 0.0

    def start(self, item: int) -> None:
        """Record that the child at `item` starts its first phase."""
        self._item = item
        self.enter(self._work[item][0])

    def enter(self, phase: str) -> None:
        """Record that the current child enters `phase`, which ends its previous phase."""
        if phase == self._phase:
            return
        self._leave()
        self._phase, self._since, self._done, self._total = phase, self._clock(), 0, 0

    def step(self, done: int, total: int) -> None:
        """Record that the current phase has completed `done` of `total` steps."""
        self._done, self._total = done, total

    def end(self, item: int, *, complete: bool) -> None:
        """Record that the child at `item` has ended; the time of an incomplete phase is not used for the
        others."""
        if complete:
            self._leave()
        self._phase, self._item = None, item + 1

    @property
    def seconds(self) -> dict[str, float]:
        """Mean seconds of each phase measured so far."""
        return {phase: sum(values) / len(values) for phase, values in self._measured.items()}

    @property
    def eta(self) -> float:
        """Expected remaining seconds of the run."""
        left = sum(
            self._expected[phase]
            for phases in self._work[max(self._item, 0) + (self._phase is not None) :]
            for phase in phases
        )
        if self._phase is None:
            return left
        phases = self._work[self._item]
        after = phases[phases.index(self._phase) + 1 :] if self._phase in phases else ()
        return left + self._left_in(self._phase) + sum(self._expected[phase] for phase in after)

    @property
    def fraction(self) -> float:
        """Completed share of the run, by time; never decreases."""
        spent = self._clock() - self._began
        self._fraction = max(self._fraction, spent / (spent + self.eta) if spent + self.eta else 1.0)
        return self._fraction

    def _left_in(self, phase: str) -> float:
        elapsed = self._clock() - self._since
        if self._done and self._total:
            return elapsed * max(0, self._total - self._done) / self._done
        expected = self._expected[phase]
        return max(expected - elapsed, LEAST_SHARE * expected)

    def _leave(self) -> None:
        if self._phase is None:
            return
        values = self._measured.setdefault(self._phase, [])
        values.append(self._clock() - self._since)
        self._expected[self._phase] = sum(values) / len(values)


class Shares:
    """Progress by completed tasks, where the phases are unknown (see `Estimate` for known ones). The steps of
    a task count if it is the only one."""

    eta: float | None = None

    def __init__(self, total: int):
        self._ended, self._total = 0, total
        self._step = 0.0

    @property
    def fraction(self) -> float:
        """Share of the completed tasks, or of the completed steps of a single task."""
        return min(1.0, (self._ended + self._step) / self._total)

    def start(self, item: int) -> None:
        """Do nothing: only a finished task counts."""

    def enter(self, phase: str) -> None:
        """Do nothing: phases of several tasks overlap."""

    def step(self, done: int, total: int) -> None:
        """Record that the current phase has completed `done` of `total` steps."""
        if self._total == 1:
            self._step = done / total if total else 0.0

    def end(self, item: int, *, complete: bool) -> None:
        """Record that another task has ended."""
        self._ended, self._step = self._ended + 1, 0.0

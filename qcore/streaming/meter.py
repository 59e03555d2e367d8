"""Throughput in bytes, and the remaining time."""

import time

from qcore.base.progress import Progress

INTERVAL = 0.2  # seconds between two reports


class ThroughputMeter:
    """Reports to `progress` (bytes done, total bytes, a phrase with MB/s and the remaining time). `left` of
    the `total` bytes remain; an earlier run did the rest."""

    def __init__(self, progress: Progress | None, left: int, total: int):
        self._progress = progress
        self._left, self._total = left, total
        self._began = time.monotonic()
        self._said = -INTERVAL
        self.done = 0

    def step(self, nbytes: int, name: str) -> None:
        """Add `nbytes` to the work done; `name` is the current tensor."""
        self.done += nbytes
        now = time.monotonic()
        if self._progress is None or now - self._said < INTERVAL:
            return
        self._said = now
        rate = self.done / max(now - self._began, 1e-9)
        phrase = (
            f"{rate / 1e6:,.0f} MB/s, {_duration((self._left - self.done) / max(rate, 1e-9))} left, {name}"
        )
        self._progress(self._total - self._left + self.done, self._total, phrase)

    def finish(self) -> None:
        """Report that all work is done."""
        if self._progress is not None:
            rate = self.done / max(time.monotonic() - self._began, 1e-9)
            self._progress(self._total, self._total, f"{rate / 1e6:,.0f} MB/s")


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"

"""Writing in a thread, while the next data are still being computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

WAITING = 2  # calls, each of which keeps its data in memory


class WriteBehind:
    """Makes calls in their order in a thread of its own, and returns before they are done. At most WAITING
    calls wait; the next one blocks. An error is raised by one of the next calls, or by `wait`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "write")
        self._pending: deque[Future] = deque()

    def __call__(self, write: Callable[..., Any], *arguments: Any) -> None:
        while len(self._pending) >= WAITING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(write, *arguments))

    def wait(self) -> None:
        """Return when all calls are done. Raise what one of them raised."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Wait, and end the thread. Raise what a call raised."""
        try:
            self.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """End the thread after the calls that wait; their errors are lost. May be called again."""
        self._pool.shutdown()
        self._pending.clear()

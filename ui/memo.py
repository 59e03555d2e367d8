"""Results that are slow to get, kept for all sessions of the server."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any


class Memo:
    """The `size` newest results by key. Threads may share it; each result is computed by one of them."""

    def __init__(self, size: int):
        self.size = size
        self._results: OrderedDict[Hashable, Any] = OrderedDict()
        self._computing: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._results)

    def recall(self, key: Hashable) -> Any | None:
        """Return the result for `key`, or None if it is not kept."""
        with self._lock:
            return self._results.get(key)

    def forget(self, key: Hashable) -> None:
        """Drop the result for `key`, if it is kept."""
        with self._lock:
            self._results.pop(key, None)

    def remember(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return the result for `key`; call `compute` if it is not kept. Other threads that want the same
        result wait for it. What `compute` raises passes through, and nothing is kept."""
        with self._lock:
            if key in self._results:
                return self._results[key]
            computing = self._computing.setdefault(key, Lock())
        with computing:
            with self._lock:
                if key in self._results:
                    return self._results[key]
            try:
                result = compute()
                with self._lock:
                    self._results[key] = result
                    while len(self._results) > self.size:
                        self._results.popitem(last=False)
                return result
            finally:
                with self._lock:
                    self._computing.pop(key, None)

"""Calls of other libraries that may never end: they run in a thread, and are given up when nothing moves.

    watched(call, seconds=30, least=30_000)    call(moving); `call` reports what arrives by moving(n)

A time limit for each answer is not enough: a server that sends one byte every two seconds keeps it. A thread
that was given up ends with the next thing that it reports; until then it is a daemon.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

LOOK_SECONDS = 0.1
T = TypeVar("T")


class StalledError(Exception):
    """Nothing, or too little, has moved for the permitted time."""


class Moving:
    """The count of what a watched call has done. Calling it with a number adds to the count."""

    def __init__(self) -> None:
        self.count = 0
        self.given_up = False

    def __call__(self, number: int) -> None:
        if self.given_up:
            raise StalledError
        self.count += number


def watched(
    call: Callable[[Moving], T], *, seconds: float, least: int = 1, look: Callable[[int], None] | None = None
) -> T:
    """Return `call(moving)`, made in a thread of its own. Meanwhile `look` receives the count, in this
    thread.

    Raise `StalledError` if fewer than `least` were counted within `seconds`, and the exceptions of `call` and
    `look`.
    """
    moving, future = Moving(), Future[T]()
    threading.Thread(target=_run, args=(call, moving, future), name="watched", daemon=True).start()
    since, before, shown = time.monotonic(), 0, 0
    try:
        while not wait([future], LOOK_SECONDS).done:
            if look is not None and moving.count != shown:
                shown = moving.count
                look(shown)
            if moving.count - before >= least:
                since, before = time.monotonic(), moving.count
            elif time.monotonic() - since > seconds:
                raise StalledError
        result = future.result()
        if look is not None and moving.count != shown:
            look(moving.count)
        return result
    finally:
        moving.given_up = True


def _run(call: Callable[[Moving], T], moving: Moving, future: Future[T]) -> None:
    try:
        future.set_result(call(moving))
    except BaseException as error:  # raised again where the result is waited for
        future.set_exception(error)

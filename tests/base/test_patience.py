"""Calls that never end are given up, and calls that move are not."""

import threading
import time

import pytest

from qcore.base.patience import StalledError, watched


def steps(number, pause):
    def call(moving):
        for _ in range(number):
            time.sleep(pause)
            moving(10)
        return number

    return call


def test_a_call_that_moves_may_take_long():
    seen = []
    assert watched(steps(8, 0.05), seconds=0.3, least=10, look=seen.append) == 8
    assert seen == sorted(set(seen)) and seen[-1] == 80


@pytest.mark.row("F7")
def test_a_call_that_moves_too_little_is_given_up_and_ends():
    threads = threading.active_count()
    with pytest.raises(StalledError):
        watched(steps(1000, 0.02), seconds=0.2, least=1000)
    time.sleep(0.1)
    assert threading.active_count() <= threads, "the thread went on"


def test_errors_of_both_sides_are_raised():
    def fail(moving):
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        watched(fail, seconds=1)

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(steps(1000, 0.02), seconds=1, look=stop)

"""Calls in a thread: in order, bounded, and no error is lost."""

import threading

import pytest

from qcore.base.write_behind import WAITING, WriteBehind


def test_calls_are_made_in_order_and_few_wait():
    made, gate = [], threading.Event()
    behind = WriteBehind()
    behind(gate.wait)
    for number in range(WAITING - 1):
        behind(made.append, number)
    blocked = threading.Thread(target=lambda: [behind(made.append, number) for number in range(5, 9)])
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive() and made == []
    gate.set()
    blocked.join(10)
    behind.close()
    assert made == [*range(WAITING - 1), 5, 6, 7, 8]


@pytest.mark.parametrize("end", ["wait", "close"])
def test_an_error_is_raised_by_the_end_at_the_latest(end):
    behind = WriteBehind()
    behind(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        getattr(behind, end)()
    behind.stop()
    behind.stop()


def test_an_error_is_raised_by_one_of_the_next_calls():
    behind = WriteBehind()
    with pytest.raises(ValueError, match="no number"):
        for _ in range(WAITING + 1):
            behind(int, "no number")
    behind.stop()

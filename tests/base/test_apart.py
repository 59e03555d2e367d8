"""Programs of strangers in a process of their own."""

import os
import time

import psutil
import pytest

from qcore.base.apart import apart

MEGABYTES = 64 << 20


@pytest.mark.parametrize("text", ["", "a", "é☃\ud800\0", "x" * 1_000_000], ids=["empty", "a", "odd", "long"])
def test_the_text_comes_back(text):
    assert apart(lambda: text, 5, MEGABYTES) == text


def test_what_it_changes_is_gone():
    held = []
    assert apart(lambda: str(held.append(1)), 5, MEGABYTES) == "None" and held == []


def fail():
    raise KeyError


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda: str(10 ** (10**9)), TimeoutError),
        (lambda: time.sleep(60) or "", TimeoutError),
        (lambda: "x" * (1 << 30), MemoryError),
        (fail, RuntimeError),
        (lambda: os.abort() or "", RuntimeError),
        (lambda: os._exit(0) or "", RuntimeError),
    ],
    ids=["native", "sleep", "memory", "raises", "aborts", "exits"],
)
def test_each_end_is_an_error(work, error):
    began = time.monotonic()
    with pytest.raises(error):
        apart(work, 0.3, MEGABYTES if error is MemoryError else 2 << 30)
    assert time.monotonic() - began < 20


def test_nothing_is_left():
    me = psutil.Process()
    before, children = set(os.listdir("/proc/self/fd")), me.children()
    for _ in range(3):
        apart(lambda: "x", 5, MEGABYTES)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert me.children() == children

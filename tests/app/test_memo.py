"""Results shared by sessions are computed once, and no thread gets an empty or lost result."""

import threading
from pathlib import Path

import pytest

from ui.memo import Memo


@pytest.mark.row("44")
def test_no_key_of_a_shared_result_is_a_digest_alone():
    """Models of different visitors may have one digest. `Checkpoint.key` tells them apart."""
    root = Path(__file__).parents[2]
    own = ("digest[:8]", '["digest"]', '.get("digest")')  # widgets of a session, and records of runs
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for folder in ("ui", "pages")
        for path in sorted((root / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if ".digest" in line and not any(each in line for each in own)
    ]
    assert found == []


def test_a_result_can_be_forgotten():
    memo = Memo(4)
    memo.remember("key", lambda: 1)
    memo.forget("key")
    memo.forget("another")
    assert memo.recall("key") is None and memo.remember("key", lambda: 2) == 2


def test_a_result_is_computed_once_though_many_threads_want_it():
    memo, calls, barrier, found = Memo(4), [], threading.Barrier(8), []

    def compute():
        calls.append(1)
        threading.Event().wait(0.05)
        return "result"

    def session():
        barrier.wait()
        found.append(memo.remember("key", compute))

    threads = [threading.Thread(target=session) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] and found == ["result"] * 8


def test_recall_of_an_evicted_result_is_none_and_stores_nothing():
    memo = Memo(2)
    for key in "abc":
        memo.remember(key, lambda key=key: [key])
    assert memo.recall("a") is None and memo.recall("c") == ["c"]
    assert memo.remember("a", lambda: ["again"]) == ["again"]


def test_threads_that_evict_each_others_results_get_their_own():
    memo, wrong = Memo(1), []

    def session(name):
        for number in range(200):
            if memo.remember((name, number), lambda number=number: (name, number)) != (name, number):
                wrong.append((name, number))

    threads = [threading.Thread(target=session, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(memo) == 1


def test_a_failure_is_not_kept():
    memo = Memo(2)
    with pytest.raises(ZeroDivisionError):
        memo.remember("key", lambda: 1 / 0)
    assert memo.recall("key") is None and memo.remember("key", lambda: 1) == 1

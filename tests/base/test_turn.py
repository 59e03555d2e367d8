"""Locks between processes."""

import time

import pytest
from filelock import FileLock

from qcore.base.errors import UnavailableError
from qcore.base.turn import held


@pytest.mark.row("F9")
def test_a_lock_that_is_kept_is_waited_for_a_bounded_time(tmp_path):
    """A stopped process in the middle of a submission kept every other one waiting for ever."""
    path = tmp_path / "submit.lock"
    other, began = FileLock(path), time.monotonic()
    with (
        other,
        pytest.raises(UnavailableError, match="has held .*submit.lock for 0 seconds"),
        held(path, 0.2),
    ):
        pass
    assert time.monotonic() - began < 2
    with held(path, 0.2):
        pass

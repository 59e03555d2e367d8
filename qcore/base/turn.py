"""Locks between processes: files that the kernel frees if their process dies.

heavy_turn()          one measurement at a time
held(path, seconds)   short work that must not wait for ever
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qcore.base.errors import UnavailableError
from qcore.base.home import home
from qcore.base.process import holder
from qcore.base.progress import Progress

LOOK_SECONDS = 0.3
WAITING = "waiting for another run to end"
_inherited = False


def inherit() -> None:
    """Declare that the parent process holds the turn, so that `heavy_turn` does not wait in this process."""
    global _inherited
    _inherited = True


@contextmanager
def held(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock file `path`. Raise `UnavailableError`, which names the process, if another one, perhaps a
    stopped one, has held it for `seconds`."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise UnavailableError(
            f"{holder(path).capitalize()} has held {path} for {seconds:.0f} seconds. Wait for that "
            "process, or end it."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def heavy_turn(progress: Progress | None = None) -> Iterator[None]:
    """Wait until no other process of this cache folder is measuring, then hold the turn. Report a wait to
    `progress` once.

    Raise `UnavailableError` if the cache folder cannot be written.
    """
    if _inherited:
        yield
        return
    lock = FileLock(str(home() / "heavy.lock"))
    try:
        home().mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                if progress is not None:
                    progress(0, 0, WAITING)
                    progress = None
                time.sleep(LOOK_SECONDS)
    except OSError as error:
        reason = error.strerror or error
        raise UnavailableError(
            f"The cache folder {home()} cannot be written ({reason}). Set QCORE_HOME to a writable folder."
        ) from error
    try:
        yield
    finally:
        lock.release()

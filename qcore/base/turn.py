"""One heavy thing at a time: whoever loads a model to measure it holds one file lock, which the kernel frees
if its holder dies."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from qcore.base.errors import UnavailableError
from qcore.base.home import home
from qcore.base.progress import Progress

LOOK_SECONDS = 0.3
WAITING = "waiting for another run to end"
_inherited = False


def inherit() -> None:
    """Declare that the process that started this one holds the turn: `heavy_turn` waits no more in here."""
    global _inherited
    _inherited = True


@contextmanager
def heavy_turn(progress: Progress | None = None) -> Iterator[None]:
    """Wait until no other process of this cache folder measures, then hold the turn. A wait is reported to
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
            f"The cache folder {home()} cannot be written ({reason}); set QCORE_HOME to one that can."
        ) from error
    try:
        yield
    finally:
        lock.release()

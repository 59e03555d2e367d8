"""What a public server deletes by itself: after some days runs of visitors, what they made, and uploads."""

import contextlib
import logging
import shutil
import threading
import time
from pathlib import Path

from qcore.base import quota
from qcore.base.errors import QcoreError
from qcore.base.home import home
from qcore.base.limits import limits
from qcore.jobs import jobs
from qcore.jobs.public import SAMPLE

PAUSE_SECONDS = 600.0
_log = logging.getLogger("qcore.jobs.upkeep")
_lock = threading.Lock()
_last: dict[Path, float] = {}  # by cache folder


def now_and_then() -> None:
    """Call `tidy`, once per ten minutes and process."""
    with _lock:
        now = time.monotonic()
        if now - _last.get(home(), -PAUSE_SECONDS) < PAUSE_SECONDS:
            return
        _last[home()] = now
    tidy()


def tidy() -> None:
    """Delete what is older than the server keeps it."""
    oldest = time.time() - 86400 * limits().days
    needed = set()
    for found in jobs.list_runs():
        if found.active:
            needed.add(Path(str(found.request.get("text"))))
        ended = found.finished_at or found.created_at or 0.0
        if found.owner not in (None, SAMPLE) and not found.active and ended < oldest:
            try:
                remove(found.run_id)
            except (QcoreError, OSError) as error:
                _log.warning("The run %s could not be deleted: %s", found.run_id, error)
    for path in (home() / "texts").glob("*.txt"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest and path not in needed:
                path.unlink()
    quota.trim(home() / "texts", "*.txt", limits().uploads, needed)


def remove(run_id: str) -> None:
    """Delete an ended run and the model that it made in the server's own folder. Raise `InputError` while it
    has not ended."""
    made = (jobs.outcome(run_id) or {}).get("folder")
    jobs.delete(run_id)
    if made is not None and Path(made).parent == home() / "made":
        shutil.rmtree(made, ignore_errors=True)

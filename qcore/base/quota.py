"""Folders of models within a quota, for a public server: the least recently used ones are deleted first, and
never one in use.

    QCORE_HOME/hub/models--OWNER--NAME     downloads; a public server does not read the cache of its owner
    QCORE_HOME/models/NAME                 conversions of downloads
    QCORE_HOME/made/NAME                   what jobs made
    QCORE_HOME/in-use/NAME.lock            a shared lock per process that uses the folder; its time is that of
                                           the last use

The kernel frees a lock when its process dies.
"""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock

from qcore.base.errors import InputError
from qcore.base.home import DEFAULT_MODELS, home

HOLD_SECONDS = 3600.0  # that a process keeps a folder after its last use of it
GRACE_SECONDS = 600.0  # after a change or a use, in which a folder stays
_held: dict[Path, tuple[float, IO]] = {}


def hub_folder() -> Path:
    """Return the folder of downloads of a public server."""
    return home() / "hub"


def download_folder(repo_id: str) -> Path:
    """Return the folder of the downloads of one repository, as the hub's library names it."""
    return hub_folder() / f"models--{repo_id.replace('/', '--')}"


def use(folder: Path) -> None:
    """Record that this process uses `folder`, which then stays for an hour at least, or until the process
    ends."""
    import fcntl

    now = time.monotonic()
    for known in [known for known, (since, _) in _held.items() if now - since > HOLD_SECONDS]:
        _held.pop(known)[1].close()
    lock = _lock_of(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = _held[folder][1] if folder in _held else lock.open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(lock)
    _held[folder] = now, file


def make_room(nbytes: float, limit: float) -> None:
    """Delete least recently used folders until `nbytes` more fit into `limit`. Raise `InputError` if they
    never will, or not now because the others are in use."""
    if nbytes > limit:
        raise InputError(
            f"This model has {nbytes / 1e9:.1f} GB, and this server keeps {limit / 1e9:.1f} GB of models in "
            "all. Choose a smaller one."
        )
    home().mkdir(parents=True, exist_ok=True)
    with FileLock(str(home() / ".quota.lock")):
        sizes = {folder: size_of(folder) for folder in _folders()}
        total = sum(sizes.values())
        for folder in sorted(sizes, key=_last_used):
            if total + nbytes <= limit:
                return
            if _remove(folder):
                total -= sizes[folder]
        if total + nbytes > limit:
            raise InputError(
                "This server has no disk space for another model, because the models that it keeps are in "
                "use. Try again later."
            )


def trim(folder: Path, pattern: str, limit: float, keep: set[Path]) -> None:
    """Delete the oldest files of `folder` that match `pattern`, except `keep`, until the others fit into
    `limit` bytes."""
    known = [path for path in folder.glob(pattern) if path not in keep]
    found = sorted(((path.stat().st_mtime, path) for path in known), reverse=True)
    total = 0
    for changed, path in found:
        total += path.stat().st_size
        if total > limit and time.time() - changed > GRACE_SECONDS:
            path.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Return the bytes of the files below `folder`; links count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(parent, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _folders() -> Iterator[Path]:
    for parent in (hub_folder(), home() / "models", home() / "made"):
        if parent.is_dir():
            for path in parent.iterdir():
                if path.is_dir() and not path.is_symlink() and path.name not in DEFAULT_MODELS:
                    yield path


def _last_used(folder: Path) -> float:
    times = []
    for path in (folder, _lock_of(folder)):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    unfinished = HOLD_SECONDS if folder.name.startswith(".") else 0.0  # or left by a killed process
    return max(times, default=0.0) + unfinished


def _remove(folder: Path) -> bool:
    """Delete `folder` unless it is in use; return whether it is gone."""
    import fcntl

    if time.time() - _last_used(folder) < GRACE_SECONDS:
        return False
    lock = _lock_of(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _lock_of(folder: Path) -> Path:
    return home() / "in-use" / f"{folder.parent.name}--{folder.name}.lock"

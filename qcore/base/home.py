"""The one folder where qcore keeps things between runs, and the one safe way to put something big into it.

    QCORE_HOME (default ~/.cache/qcore)
        models/     models that were converted once
        texts/      texts that were downloaded once
        runs/       run folders
        qcore.db    results

A folder appears in there complete or not at all: `build_folder` fills a temporary folder beside it and
renames that at the end, under a lock, so that two processes that want the same model convert it once.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qcore.base.errors import UnavailableError
from qcore.base.files import new_folder
from qcore.base.progress import Progress

DEFAULT_MODELS = ("smollm2-135m", "smollm2-135m-dithered")  # names that never mean a path or a hub id
_FLOOR = 64 << 20  # bytes of disk to leave free besides what is about to be written


def home() -> Path:
    """Return the cache folder: QCORE_HOME if it is set, else ~/.cache/qcore. It may not exist yet."""
    chosen = os.environ.get("QCORE_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "qcore"


def is_public() -> bool:
    """Return whether this process belongs to a server open to strangers, who must not name paths on its disk.

    QCORE_PUBLIC says so: the dashboard sets it at its start (`ui/exposure.py`), and its jobs inherit it. A
    script or a command line without the variable belongs to whoever runs it.
    """
    return os.environ.get("QCORE_PUBLIC", "").strip().lower() not in ("", "0", "no", "false")


def check_space(folder: Path, nbytes: int, what: str) -> None:
    """Raise `UnavailableError` unless `nbytes` more fit on the disk that holds `folder` (or its nearest
    existing parent)."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if nbytes + _FLOOR > free:
        raise UnavailableError(
            f"{what} needs {nbytes / 1e9:.1f} GB of disk, but only {free / 1e9:.1f} GB are free in "
            f"{existing}. Free some space, or set QCORE_HOME to a folder on a larger disk."
        )


def build_folder(final: Path, build: Callable[[Path], None], *, progress: Progress | None = None) -> Path:
    """Return `final`, building it first if it does not exist: `build(temporary)` fills a temporary folder,
    which is then renamed.

    Whoever comes second waits for the first. What a killed process left behind is removed. Raise
    `UnavailableError` if the cache folder cannot be written; whatever `build` raises passes through, and
    nothing is left behind.
    """
    from filelock import FileLock, Timeout

    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.parent / f".{final.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress is not None:
                progress(0, 0, f"waiting for another process that prepares {final.name}")
            lock.acquire()
    except OSError as error:
        raise _unwritable(final.parent, error) from error
    try:
        if final.is_dir():
            return final
        for stale in final.parent.glob(f".{final.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with new_folder(final) as temporary:
            build(temporary)
        return final
    except OSError as error:
        raise _unwritable(final.parent, error) from error
    finally:
        lock.release()


def _unwritable(folder: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"The cache folder {folder} cannot be written ({error.strerror or error}). Set QCORE_HOME to a "
        "folder that can, with enough space."
    )

"""The cache folder of qcore, and the safe way to build a large folder in it.

    QCORE_HOME (default ~/.cache/qcore)
        models/     converted models
        texts/      downloaded texts
        runs/       run folders
        qcore.db    results

Folders in it are always complete: `build_folder` fills a temporary folder and renames it at the end. It holds
a lock, so that two processes that need the same model convert it once.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qcore.base.errors import InputError, UnavailableError
from qcore.base.files import expanded, new_folder
from qcore.base.progress import Progress

# names of the default models, never read as a path or a hub id
DEFAULT_MODELS = ("smollm2-135m", "smollm2-135m-dithered")
_FLOOR = 64 << 20  # bytes of disk that stay free after a write


def home() -> Path:
    """Return the cache folder: QCORE_HOME if it is set, else ~/.cache/qcore. It may not exist yet.

    Raise `InputError` if there is no home folder.
    """
    chosen = os.environ.get("QCORE_HOME") or "~/.cache/qcore"
    try:
        return expanded(chosen).absolute()
    except InputError as error:
        raise InputError(
            f"The cache folder {chosen} cannot be found: this system knows no such home folder. Set "
            "QCORE_HOME to a folder that can be written."
        ) from error


def is_public() -> bool:
    """Return whether this process belongs to a public server, whose visitors must not name paths on its disk.

    The variable QCORE_PUBLIC decides: the dashboard sets it at its start (`ui/exposure.py`), and its jobs
    inherit it. Scripts and the command line are private unless it is set.
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
    """Return `final`. If it does not exist, call `build(temporary)` to fill a temporary folder, and rename
    that.

    A second process waits for the first. Raise `UnavailableError` if the cache folder cannot be written.
    Exceptions of `build` propagate, and the temporary folder is removed.
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
                progress(0, 0, f"waiting for another process to prepare {final.name}")
            lock.acquire()
    except OSError as error:
        raise _unwritable(final.parent, error) from error
    try:
        if final.is_dir():
            return final
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
        "writable folder with enough space."
    )

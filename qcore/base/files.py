"""Files and folders that are replaced atomically, JSON without NaN, and the package's data files.

    replaced_file(path)    write beside `path`, flush to the disk, rename
    new_folder(path)       fill a folder beside `path`, flush it, give it the name
    publish(made, final)   the last step alone: `made` replaces `final` atomically
    tidy(final)            undo a replacement that a kill cut short, and remove leftovers

Readers see the old state or the new one, also after a kill or a power cut. Files get the permissions that the
user's umask gives, so that others who share a cache folder can read them.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import logging
import math
import mmap
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from qcore.base.errors import InputError

LONGEST_PATH = 4096  # characters, Linux's limit
_WINDOW = 256 << 20  # bytes hashed in one call, a multiple of the page size
_TEMPORARY = re.compile(r"(partial|replaced)-[0-9a-f]{8}")  # ends of the names of temporary folders
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_log = logging.getLogger(__name__)


# -- files ---------------------------------------------------------------------------------------------------


@contextmanager
def replaced_file(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file beside `path` for writing; it is flushed to the disk and takes the name `path` at
    the end. On an exception it is removed and `path` stays unchanged.

    `mode` and `options` are those of `open`. Raise `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open(mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 through `replaced_file`; half a surrogate pair is written as an escape."""
    with replaced_file(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON through `replaced_file`, and make the folder if there is none. Non-finite numbers
    become null."""
    text = json.dumps(finite(value), ensure_ascii=False, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read_json(path: Path) -> Any:
    """Return the value in the JSON file, or None if the file is missing or damaged; damage is logged.

    Raise `InputError` if the file exists and cannot be read, for example without permission: that is not the
    same as "missing".
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}. Check the permissions of this file and its "
            "folder."
        ) from error
    except (ValueError, RecursionError) as error:
        _log.warning("%s is damaged and is ignored: %s", path, error)
        return None


def finite(value: Any) -> Any:
    """Return `value` with tuples as lists and non-finite floats as None, so that any JSON reader takes it."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raise `OSError`.

    The file is read through maps of 256 MB, one call per map, so that other threads keep running.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as window:
                digest.update(window)
    return digest.hexdigest()


def expanded(path: Path | str) -> Path:
    """Return `path` with "~" and "~user" replaced by a home folder. Raise `InputError` if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{path} cannot be found: this system knows no such home folder. Give the path without '~'."
        ) from error


def asset(name: str) -> Path:
    """Return the path of a data file of the package."""
    return Path(__file__).resolve().parents[1] / "assets" / name


# -- folders -------------------------------------------------------------------------------------------------


def real_target(folder: Path | str) -> Path:
    """Return the absolute path, links followed, at which `new_folder` will put `folder`.

    Raise `InputError` if publishing would fail at the end: for the working folder or one above it, a mount
    point, a loop of links, or a parent folder that cannot be written.
    """
    try:
        final = expanded(folder).resolve()
    except RuntimeError as error:  # `resolve` on a loop of links, `expanduser` without a home
        raise InputError(f"{folder} cannot be resolved: {error}. Check its links.") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be found: {error.strerror or error}.") from error
    if Path.cwd().is_relative_to(final):
        raise InputError(
            f"{folder} is the working folder or contains it, so it cannot be replaced. Give the name of a "
            "new folder."
        )
    if final.is_mount():
        raise InputError(f"{folder} is a mount point, so it cannot be replaced. Give a folder inside it.")
    restore(final)
    parent = next(parent for parent in final.parents if parent.exists())
    if not parent.is_dir():
        raise InputError(f"{folder} cannot be created: {parent} is a file.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be created: there is no permission to write into {parent}.")
    return final


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final`; at the end `publish` gives it that name. On an exception it is
    removed and `final` stays unchanged.

    The folder that holds `final` is created if needed. Raise `OSError`.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    tidy(final)
    scratch = final.with_name(f".{final.name}.partial-{secrets.token_hex(4)}")
    scratch.mkdir()
    lock = _lock(scratch)
    try:
        yield scratch
        publish(scratch, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def publish(made: Path, final: Path) -> None:
    """Flush the folder `made` to the disk and give it the place and name of `final` as `swap` does."""
    settle(made)
    swap(made, final)


def swap(made: Path, final: Path) -> None:
    """Give the folder `made`, which is on the disk, the place and name of `final` beside it, which is removed
    after that.

    At every moment one complete folder is on the disk. On Linux the two exchange their names in one step.
    Where the file system cannot do that, `final` is first renamed to ".NAME.replaced-…". If the process is
    killed between the two renames, `restore` gives that folder its name back. Raise `OSError`.
    """
    try:
        if not final.exists():
            os.replace(made, final)
        elif _exchange(made, final):
            shutil.rmtree(made, ignore_errors=True)
        else:
            aside = final.with_name(f".{final.name}.replaced-{secrets.token_hex(4)}")
            os.replace(final, aside)
            try:
                os.replace(made, final)
            except BaseException:
                if not final.exists():
                    os.replace(aside, final)
                raise
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        sync_folder(final.parent)


def tidy(final: Path) -> None:
    """Restore `final` if that is needed, and remove the temporary folders of processes that were killed. A
    folder in use is locked by its process, and stays."""
    restore(final)
    for stale in final.parent.glob(f".{glob.escape(final.name)}.*-*"):
        if not _TEMPORARY.fullmatch(stale.name.removeprefix(f".{final.name}.")):
            continue
        if (unused := _lock(stale)) is not None:
            shutil.rmtree(stale, ignore_errors=True)
            os.close(unused)


def restore(final: Path) -> bool:
    """Give a folder its name back whose replacement by `swap` was cut short by a kill. Return whether there
    was one."""
    try:
        if os.path.exists(final):
            return False
        found = sorted(final.parent.glob(f".{glob.escape(final.name)}.replaced-*"))
        for aside in found[-1:]:
            os.replace(aside, final)
            _log.warning("%s was being replaced when its process ended; the old one is back", final)
        return bool(found)
    except OSError:  # no such folder, or another process was faster
        return os.path.exists(final)


def _lock(folder: Path) -> int | None:
    """Return a handle that holds the lock of a folder until it is closed, or None if another process has the
    lock or the file system has none."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except OSError:
        os.close(handle)
        return None


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot flush a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Flush all files below `folder` and give them the read permissions of the folder: some libraries write
    files that only the owner can read."""
    readable = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            path.chmod(path.stat().st_mode & 0o7777 | readable)
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two paths atomically. Return False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library older than 2018
        return False
    return not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)

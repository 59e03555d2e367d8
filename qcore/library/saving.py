"""Save a model into a folder atomically, and never replace files that qcore did not write."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcore.base.errors import InputError, UnavailableError
from qcore.base.files import new_folder, read_json, real_target
from qcore.models.checkpoint import ONNX_MANIFEST

MADE, MANIFEST, EXPORTED = "qcore-made.json", "qcore.json", "qcore-export.json"
"""Marker files: qcore-made.json (pruned or distilled), qcore.json (quantized) and qcore-export.json (written
for another project's code)."""
MARKERS = (MADE, MANIFEST, ONNX_MANIFEST, EXPORTED)


def made_from(folder: Path) -> dict | None:
    """Return the record of the original of the model in `folder`, as in `Checkpoint.origin`; None if qcore
    did not make it or its marker file has no such record."""
    for name in MARKERS:
        record = read_json(folder / name)
        origin = record.get("from") if isinstance(record, dict) else None
        if isinstance(origin, dict) and {"model", "revision", "digest"} <= set(origin):
            return origin
    return None


def check_folder(folder: Path | str, *, overwrite: bool = False) -> Path:
    """Return the absolute path at which `folder` will appear, symbolic links followed.

    Raise `InputError`, before any work, if a model cannot be saved there: the folder holds files, or
    `real_target` refuses it. `overwrite` allows only a folder that qcore wrote, so that a typing error cannot
    empty a home folder.
    """
    final = real_target(folder)
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return final
    if not final.is_dir():
        raise InputError(f"{folder} is a file. Give the name of a new folder.")
    if not overwrite:
        raise InputError(f"{folder} is not empty. Choose another folder, or allow it to be overwritten.")
    if not any((final / name).is_file() for name in MARKERS):
        raise InputError(
            f"{folder} was not written by qcore, so it is not overwritten. Choose another folder, or empty "
            "it first."
        )
    return final


@contextmanager
def replaced_folder(folder: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `folder` at the end and is removed on an exception. An old
    model stays until the new one is complete.

    Raise `InputError` as `check_folder` does or if a file cannot be written, `UnavailableError` if the disk
    is full.
    """
    final = check_folder(folder, overwrite=overwrite)
    try:
        with new_folder(final) as scratch:
            yield scratch
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnavailableError(
                f"The disk that holds {final.parent} is full, so the model was not saved. Free some space "
                "and try again."
            ) from error
        raise InputError(f"The model cannot be saved in {folder}: {error}.") from error

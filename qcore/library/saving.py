"""Where a model is saved: a folder that appears complete or not at all, and never takes the place of somebody
else's files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import read_json
from qcore.models.checkpoint import ONNX_MANIFEST

MADE, MANIFEST = "qcore-made.json", "qcore.json"
"""The files by which a folder is known that qcore made without quantizing, or quantized."""


def made_from(folder: Path) -> dict | None:
    """What the model in `folder` was made from, as `Checkpoint.origin` says it; None if qcore did not make
    it, or did not say."""
    for name in (MADE, MANIFEST, ONNX_MANIFEST):
        record = read_json(folder / name)
        origin = record.get("from") if isinstance(record, dict) else None
        if isinstance(origin, dict) and {"model", "revision", "digest"} <= set(origin):
            return origin
    return None


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `InputError` if a model cannot be saved into `folder` because it holds something. `overwrite`
    allows a folder that qcore wrote, and no other: nobody's home is emptied by a slip of the keyboard."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise InputError(
            f"{folder} exists already and is not empty. Choose another folder, or give --overwrite."
        )
    if not any((folder / name).is_file() for name in (MADE, MANIFEST, ONNX_MANIFEST)):
        raise InputError(
            f"{folder} was not written by qcore, so it is not overwritten. Choose another folder, or empty it yourself."
        )


@contextmanager
def replaced_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place and name of `folder` at the end, and is removed
    if anything goes wrong.

    Raises `InputError` as `check_folder` does.
    """
    check_folder(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

"""Rows of a comparison for models that other projects quantized, from the names of files and folders."""

from __future__ import annotations

from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import expanded
from qcore.recipes.names import FILE, parse_row
from qcore.recipes.recipe import Recipe


def file_rows(files: str | Path | Iterable[str | Path]) -> tuple[Recipe, ...]:
    """Return one recipe per model in `files`: GGUF files, folders and hub ids, as a list or separated by
    commas. A pattern such as "downloads/*.gguf" stands for all files that match, in the order of their names.

    Raise `InputError` for a pattern that matches nothing.
    """
    if isinstance(files, str | Path):
        files = str(files).split(",")
    names = [name for each in files if str(each).strip() for name in _matches(str(each).strip())]
    return tuple(parse_row(FILE + name) for name in names)


def _matches(name: str) -> list[str]:
    if not has_magic(name) or expanded(name).exists():
        return [name]
    found = sorted(glob(str(expanded(name))))
    if not found:
        raise InputError(f"No file matches {name!r}. Check the folder, or name the files one by one.")
    return found

"""Paths of the server are taken out of everything that a public server shows or sends."""

import os
import re
import site
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from qcore.base.home import home, is_public

T = TypeVar("T")
_GENERAL = {"/", "/home", "/opt", "/tmp", "/usr", "/usr/local", "/var"}  # occur in texts, and say nothing
_KEPT = ("generations", "questions")  # texts of the visitor and of models, in records


def redacted(value: T) -> T:
    """Return `value` (text, or JSON-ready) with each path below the server's own folders cut to its last
    part; on a private server unchanged."""
    return _clean(value, _paths(str(home()))) if is_public() else value


def _clean(value: Any, paths: re.Pattern) -> Any:
    if isinstance(value, str):
        return paths.sub(_last, value) if "/" in value else value
    if isinstance(value, dict):
        return {key: inner if key in _KEPT else _clean(inner, paths) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_clean(inner, paths) for inner in value)
    return value


def _last(found: re.Match) -> str:
    return found[0].rstrip("/").rpartition("/")[2]


@lru_cache(maxsize=4)
def _paths(cache: str) -> re.Pattern:
    """Return the pattern of paths below the folders of the server: cache, home, code, libraries."""
    folders = [
        cache,
        str(Path.home()),
        str(Path(__file__).resolve().parents[1]),
        os.getcwd(),
        sys.prefix,
        sys.exec_prefix,
        *site.getsitepackages(),
        sysconfig.get_paths()["stdlib"],
    ]
    known = {str(Path(each)) for each in folders} | {str(Path(each).resolve()) for each in folders}
    roots = sorted(known - _GENERAL, key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(map(re.escape, roots))})(?:/[^\s'\"`,;:()\[\]<>]*)?")

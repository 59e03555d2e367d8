"""Facts that a file declares about itself, read without importing it.

A method and an engine are one file each, and what recipes' names, plans and pages have to know of them stands
in it as `INFO = …`. Those files import torch, but names are parsed in processes that must stay small (the
command line, the worker that watches a run), so the declaration alone is evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def infos(folder: Path, kind: type[T], *parts: type) -> Iterator[T]:
    """Return the `INFO = Kind(…)` of each Python file in `folder`, in the order of their names; the
    expression may use `kind` and `parts` alone. Raise `NameError` for another name in it."""
    visible = {each.__name__: each for each in (kind, *parts)}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"\nINFO = {kind.__name__}(" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO":
                expression = compile(ast.Expression(node.value), str(path), "eval")
                yield eval(expression, {"__builtins__": {}, **visible})

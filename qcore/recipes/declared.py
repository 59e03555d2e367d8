"""Reads the facts that a source file declares about itself, without importing it.

Each method and each engine is one file. Its `INFO = …` declares what recipe names, plans and pages need.
These files import torch, but names are parsed in processes that must stay small (the command line, the worker
that watches a run), so only the declaration is evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def infos(folder: Path, kind: type[T], *parts: type) -> Iterator[T]:
    """Return the `INFO = Kind(…)` of each Python file in `folder`, in alphabetical order. The expression may
    use only the names `kind` and `parts`; raise `NameError` for others."""
    visible = {each.__name__: each for each in (kind, *parts)}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"\nINFO = {kind.__name__}(" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO":
                expression = compile(ast.Expression(node.value), str(path), "eval")
                yield eval(expression, {"__builtins__": {}, **visible})

"""Other people's quantizers. Each engine is one file: its `INFO`, what recipes, plans and pages have to know of it, and the function
`(model, recipe, progress, quantize) -> list[LedgerRow]` that `register(INFO)` decorates.

Nothing here imports a library until it is asked to quantize; `available` only looks whether it is there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from qcore.base.errors import UnavailableError
from qcore.base.extensions import ExtensibleRegistry
from qcore.recipes import EngineInfo, Recipe, Variant
from qcore.recipes.engines import declare
from qcore.recipes.ledger import LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ENGINES", "Engine", "EngineInfo", "Variant", "available", "load", "missing", "register"]


class Apply(Protocol):
    """What an engine does."""

    def __call__(
        self,
        model: PreTrainedModel,
        recipe: Recipe,
        progress: Callable[[int, int, str], None],
        quantize: Callable | None = None,
    ) -> list[LedgerRow]:
        """Quantize `model` in place; a row for each of its tensors. `quantize` applies a recipe of ours, for
        engines that run our codes. Raises `NotAppliedError` if a layer did not change."""


A = TypeVar("A", bound=Apply)


@dataclass(frozen=True)
class Engine:
    """A registered engine. `available` returns None if the library can be used here, else one sentence that says
    why not."""

    info: EngineInfo
    apply: Apply
    available: Callable[[], str | None]


def _import_all() -> None:
    """Import every file of this folder that declares an engine, so that each registers itself."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\nINFO = " in path.read_text(encoding="utf-8"):
            importlib.import_module(f"{__name__}.{path.stem}")


ENGINES: ExtensibleRegistry[Engine] = ExtensibleRegistry("library", _import_all)


def register(info: EngineInfo, available: Callable[[], str | None] | None = None) -> Callable[[A], A]:
    """A decorator that enters a function as the engine `info` describes. By default it is available where
    `info.library` can be imported. Raises `ValueError` if the name, or that of a recipe, is taken."""

    def enter(apply: A) -> A:
        declare(info)
        ENGINES.register(info.name)(Engine(info, apply, available or partial(missing, info)))
        return apply

    return enter


def load(library: str) -> Engine:
    """The engine called `library`. Raises `InputError` for an unknown name, `UnavailableError` if it cannot
    be used here."""
    if reason := available(library):
        raise UnavailableError(reason)
    return ENGINES[library]


def available(library: str) -> str | None:
    """None if `library` can be used here, else one sentence that says why not. Cheap: the library itself is
    not imported."""
    return ENGINES[library].available()


def missing(info: EngineInfo) -> str | None:
    """One sentence if the package that the engine needs is not installed, else None."""
    try:
        found = find_spec(info.library)
    except ModuleNotFoundError:  # the parent package is missing
        found = None
    return (
        None if found else f"{info.title} is not installed here. Install it with: pip install {info.install}"
    )

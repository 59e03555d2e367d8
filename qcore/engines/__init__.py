"""Engines: quantizers of other libraries. Each engine is one file: its `INFO`, read by recipes, plans and
pages, and the function `(model, recipe, progress, quantize) -> list[LedgerRow]` that `register(INFO)`
decorates.

A library is imported only when it quantizes; `available` only checks that it is installed.
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
    """The function of an engine."""

    def __call__(
        self,
        model: PreTrainedModel,
        recipe: Recipe,
        progress: Callable[[int, int, str], None],
        quantize: Callable | None = None,
    ) -> list[LedgerRow]:
        """Quantize `model` in place, and return a row per tensor. `quantize` applies a recipe of qcore, for
        engines that run qcore's codes. Raise `NotAppliedError` if a layer did not change."""


A = TypeVar("A", bound=Apply)


@dataclass(frozen=True)
class Engine:
    """A registered engine. `available` returns None if the library can be used here, else the reason in one
    sentence."""

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
    """Return a decorator that registers a function as the engine that `info` describes. By default the engine
    is available if `info.library` is installed. Raise `ValueError` if its name, or that of a recipe, is
    taken."""

    def enter(apply: A) -> A:
        declare(info)
        ENGINES.register(info.name)(Engine(info, apply, available or partial(missing, info)))
        return apply

    return enter


def load(library: str) -> Engine:
    """Return the engine called `library`. Raise `InputError` for an unknown name, `UnavailableError` if it
    cannot be used here."""
    if reason := available(library):
        raise UnavailableError(reason)
    return ENGINES[library]


def available(library: str) -> str | None:
    """Return None if `library` can be used here, else the reason in one sentence. The library itself is not
    imported."""
    return ENGINES[library].available()


def missing(info: EngineInfo) -> str | None:
    """Return a sentence if the package that the engine needs is not installed, else None."""
    try:
        found = find_spec(info.library)
    except ModuleNotFoundError:  # the parent package is missing
        found = None
    return (
        None if found else f"{info.title} is not installed here. Install it with: pip install {info.install}"
    )

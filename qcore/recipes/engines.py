"""Facts about each engine (another library's quantizer), available without importing the library.

An engine declares its `EngineInfo` in its own file, `qcore/engines/`, and registers the function beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qcore.base.extensions import ExtensibleRegistry
from qcore.base.quiet import drop_messages
from qcore.base.registry import unknown
from qcore.recipes.declared import infos

FOLDER = Path(__file__).parent.parent / "engines"


@dataclass(frozen=True)
class Variant:
    """One recipe of an engine: the `name` of the library's format, one line of `words`, the `bits` per
    quantized weight (scales included, rounded up), qcore's `nearest` recipe (None: floating point), and the
    bytes that the library holds while it runs."""

    name: str
    words: str
    bits: float
    nearest: str | None = None
    running_bytes: int = 0


@dataclass(frozen=True)
class EngineInfo:
    """`name` is used in records. `library` must be importable; `install` is the pip requirement that provides
    it. `recipes` maps recipe names to variants.

    `loaded_bytes`: memory of the loaded library besides torch. `quantizes_head`: the output head is also
    quantized, as a separate copy if it is tied. `logged` lists (logger, pattern at the start of the message)
    of irrelevant messages to silence. `color` is the engine's color on the pages.
    """

    name: str
    title: str
    library: str
    install: str
    recipes: dict[str, Variant] = field(hash=False)
    loaded_bytes: int = 0
    quantizes_head: bool = False
    logged: tuple[tuple[str, str], ...] = ()
    color: str = "#5f9ea8"


def declare(info: EngineInfo) -> None:
    """Enter `info` in the table of engines; entering the same again changes nothing. Raise `ValueError` if
    another one has its name, or that of one of its recipes."""
    for other in ENGINES.known():
        if other.name != info.name and (both := set(other.recipes) & set(info.recipes)):
            raise ValueError(f"the recipe {min(both)!r} belongs to the engine {other.name!r} already")
    ENGINES.enter(info.name, info)
    drop_messages(info.logged)


def _declared() -> None:
    for info in infos(FOLDER, EngineInfo, Variant):
        declare(info)


ENGINES: ExtensibleRegistry[EngineInfo] = ExtensibleRegistry("engine", _declared)


def recipes() -> dict[str, tuple[EngineInfo, Variant]]:
    """Return (engine, variant) of every engine's recipes, by recipe name."""
    return {name: (info, variant) for info in ENGINES.values() for name, variant in info.recipes.items()}


def variant(engine: str, name: str) -> Variant:
    """Return the variant called `name` of an engine. Raise `InputError` for an unknown one."""
    found = {each.name: each for each in ENGINES[engine].recipes.values()}
    if name not in found:
        raise unknown(f"variant of {engine}", name, found)
    return found[name]

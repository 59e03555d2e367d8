"""Facts about each method of choosing codes.

A method declares its `MethodInfo` in its own file, `qcore/quantization/methods/`, and registers the function
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcore.base.extensions import ExtensibleRegistry
from qcore.recipes.declared import infos

FOLDER = Path(__file__).parent.parent / "quantization" / "methods"


@dataclass(frozen=True)
class MethodInfo:
    """`name` is used in records, `words` in descriptions. `option` is the method's part of recipe names, such
    as "gptq" in int4-g64-gptq; None for a format's default method.

    `needs_text`: codes are chosen block by block from calibration text; otherwise from each weight alone.
    `wants_drift`: the method compares with the unquantized model, which runs alongside. `folds`: the method
    folds scales into unquantized weights, so its codes do not approximate the original weights. `grids` lists
    the supported grids: "even", "fixed" and "learned" (`Format.grid`); `limits` states them as a predicate
    for error messages. `work` is the working memory, in fp32 copies of the largest weight; `streamed` is the
    same in 16-bit copies while a checkpoint is quantized tensor by tensor, None if that is impossible.
    `examples` are recipe names to offer.
    """

    name: str
    words: str
    option: str | None = None
    needs_text: bool = False
    wants_drift: bool = False
    folds: bool = False
    grids: tuple[str, ...] = ("even", "fixed", "learned")
    limits: str = "does not work on this format"
    work: float = 6.0
    streamed: float | None = 16.0
    examples: tuple[str, ...] = ()

    @property
    def streams(self) -> bool:
        """Whether weights can be quantized one at a time as they are read."""
        return self.streamed is not None and not self.needs_text


def _declared() -> None:
    for info in infos(FOLDER, MethodInfo):
        METHODS.enter(info.name, info)


METHODS: ExtensibleRegistry[MethodInfo] = ExtensibleRegistry("method", _declared)


def options() -> dict[str, MethodInfo]:
    """Return the methods by their option in recipe names."""
    return {info.option: info for info in METHODS.values() if info.option is not None}


def needs_text(method: str) -> bool:
    """Return whether the method reads calibration text; False for "none" and for unknown methods."""
    return method in METHODS and METHODS[method].needs_text

"""What is known about each method of choosing codes, without running it.

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
    """`name` stands in records, `words` in descriptions. `option` is the method's part of recipes' names,
    such as "gptq" in int4-g64-gptq; None for one that a format chooses by itself.

    `needs_text`: codes are chosen block by block from calibration text; otherwise from a weight alone. A
    method that `wants_drift` compares with the unquantized model, which is then run alongside. One that
    `folds` scales changes unquantized weights, too, so codes do not stand for the original's. `grids` lists
    what it works on: "even", "fixed" and "learned" tables (`Format.grid`); `limits` says so in a sentence
    without a subject. `work` is the memory it takes to choose codes, in fp32 copies of the largest weight;
    `streamed` the same in 16-bit copies while a checkpoint is quantized tensor by tensor, None if that cannot
    be done. `examples` are names of recipes worth offering.
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
    """Return the methods that have an option in recipes' names, by it."""
    return {info.option: info for info in METHODS.values() if info.option is not None}


def needs_text(method: str) -> bool:
    """Return whether the method reads calibration text; False for "none" and for one that is not known
    here."""
    return method in METHODS and METHODS[method].needs_text

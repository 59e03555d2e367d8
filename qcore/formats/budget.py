"""A budget in place of a format: each layer gets one of several candidate formats, chosen by its sensitivity
(`qcore.quantization.sensitivity`).

The budget limits the average of all quantized weights (`bpw`: stored bits per weight, scales and zero points
included), the size of the whole model (`mb`: units of 1,000,000 bytes, unquantized layers included), or the
loss (`kl`: predicted nats per token, with the smallest model within that).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.k_quants import KQuant
from qcore.formats.kinds import Format, from_dict
from qcore.formats.uniform import Uniform

UNITS = {"bpw": "bits per weight", "mb": "MB for the whole model", "kl": "nats of predicted KL"}
LARGEST = {"bpw": 16.0, "mb": 1e9, "kl": 100.0}
PATTERN = rf"\d+(\.\d+)?({'|'.join(UNITS)})"
CANDIDATES = (
    Uniform(3, 64, False),
    Uniform(3, 32, False),
    Uniform(4, 128, False),
    Uniform(4, 64, False),
    Uniform(4, 32, False),
    Uniform(8, None, True),
)


GGUF_CANDIDATES = (
    KQuant(2),
    KQuant(3),
    Codebook("iq4nl", 32),
    KQuant(4),
    Affine(4, 32),
    KQuant(5),
    KQuant(6),
    Uniform(8, 32, True),
)
"""The types of llama.cpp among which `gguf-auto-…` chooses."""


@dataclass(frozen=True)
class Budget:
    """At most `amount` of `unit` ("bpw", "mb" or "kl"), spent on formats among the `candidates`, which go
    from small to large."""

    amount: float
    unit: str
    candidates: tuple[Format, ...] = field(default=CANDIDATES)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}, but it must be one of {', '.join(UNITS)}")
        if not 0 < self.amount <= LARGEST[self.unit]:
            raise ValueError(
                f"the budget is {self.amount:g} {self.unit}, but it must be above 0 and at most "
                f"{LARGEST[self.unit]:g}"
            )
        object.__setattr__(
            self,
            "candidates",
            tuple(from_dict(each) if isinstance(each, dict) else each for each in self.candidates),
        )
        if len(set(self.candidates)) < max(2, len(self.candidates)):
            raise ValueError("a budget needs at least two different candidate formats")

    @property
    def largest(self) -> Format:
        """The candidate with the most bits."""
        return self.candidates[-1]

    @property
    def label(self) -> str:
        """The budget in the notation of recipe names, such as "4.25bpw"."""
        return f"{plain(self.amount)}{self.unit}"

    @property
    def words(self) -> str:
        """The budget as a phrase for users."""
        return f"{plain(self.amount)} {UNITS[self.unit]}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields, which the constructor accepts."""
        candidates = [format.to_dict() for format in self.candidates]
        return {"amount": self.amount, "unit": self.unit, "candidates": candidates}


def with_double_quant(candidates: tuple[Format, ...] = CANDIDATES) -> tuple[Format, ...]:
    """Return the candidates, with 8-bit scales where they have one scale per group."""
    return tuple(
        from_dict(format.to_dict() | {"double_quant": True})
        if format.group_size and "dq" in format.OPTIONS
        else format
        for format in candidates
    )


def read(option: str) -> tuple[float, str] | None:
    """Return (4.25, "bpw") for "4.25bpw"; None if the text is not a budget."""
    found = re.fullmatch(PATTERN, option)
    return (float(option.removesuffix(found[2])), found[2]) if found else None


def plain(amount: float) -> str:
    """Return the amount without an exponent, as in recipe names."""
    return f"{amount:.12f}".rstrip("0").rstrip(".")

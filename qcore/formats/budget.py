"""A budget in the place of a format: each layer gets the one of several candidates that it needs, see
`qcore.quantization.sensitivity`.

The budget is what all quantized weights take on average (`bpw`: bits a weight as stored, scales and zero
points included), what the whole model takes (`mb`: 1,000,000 bytes, layers that are kept included), or what
may be lost (`kl`: predicted nats a token; then the model becomes as small as it can).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from qcore.formats.kinds import Format, from_dict
from qcore.formats.uniform import Uniform

UNITS = {"bpw": "bits a weight", "mb": "MB for the whole model", "kl": "nats of predicted KL"}
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


@dataclass(frozen=True)
class Budget:
    """At most `amount` of `unit` ("bpw", "mb" or "kl"), spent on formats among the `candidates`, which go
    from small to large."""

    amount: float
    unit: str
    candidates: tuple[Format, ...] = field(default=CANDIDATES)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}, but a budget is counted in {', '.join(UNITS)}")
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
            raise ValueError("candidates are at least two different formats")

    @property
    def largest(self) -> Format:
        """The candidate with the most bits."""
        return self.candidates[-1]

    @property
    def label(self) -> str:
        """The budget as recipes' names have it, such as "4.25bpw"."""
        return f"{plain(self.amount)}{self.unit}"

    @property
    def words(self) -> str:
        """The budget for people."""
        return f"{plain(self.amount)} {UNITS[self.unit]}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields; the constructor takes them."""
        candidates = [format.to_dict() for format in self.candidates]
        return {"amount": self.amount, "unit": self.unit, "candidates": candidates}


def with_double_quant(candidates: tuple[Format, ...] = CANDIDATES) -> tuple[Format, ...]:
    """Return the candidates that have a scale for each group, with those scales in 8 bits; the others as they
    are."""
    return tuple(
        from_dict(format.to_dict() | {"double_quant": True})
        if format.group_size and "dq" in format.OPTIONS
        else format
        for format in candidates
    )


def read(option: str) -> tuple[float, str] | None:
    """Return (4.25, "bpw") from "4.25bpw"; None if it is no budget."""
    found = re.fullmatch(PATTERN, option)
    return (float(option.removesuffix(found[2])), found[2]) if found else None


def plain(amount: float) -> str:
    """Return the amount without an exponent, as names have it."""
    return f"{amount:.12f}".rstrip("0").rstrip(".")

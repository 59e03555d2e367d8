"""Memory of well-known accelerators, and amounts of memory as text."""

import json
import math
import re
from dataclasses import dataclass
from functools import cache

from qcore.base.errors import InputError
from qcore.base.files import asset

RUNTIME = 800_000_000  # bytes of the driver context and libraries on a card before any model is loaded
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]i?b|b?)", re.IGNORECASE)
LEAST, MOST = 10_000_000, 1_000_000_000_000_000


@dataclass(frozen=True)
class Machine:
    """An accelerator: its `name` and the bytes that a model may fill."""

    name: str
    bytes: int


@cache
def machines() -> tuple[Machine, ...]:
    """Return the accelerators of machines.json, smallest first."""
    listed = json.loads(asset("machines.json").read_text(encoding="utf-8"))["machines"]
    found = (
        Machine(each["name"], int(each["memory_gib"] * 2**30 * each.get("usable", 1.0))) for each in listed
    )
    return tuple(sorted(found, key=lambda machine: machine.bytes))


@dataclass(frozen=True)
class Target:
    """The memory that a model must run in: `bytes`, a description (`is`), and whether it is an accelerator's
    (`card`), whose overhead differs from that of a process on a CPU."""

    bytes: int
    is_: str
    card: bool = False


def target(text: str | int | float) -> Target:
    """Parse an amount of memory or the name of a known accelerator. Raise `InputError` for anything else."""
    for machine in machines():
        if str(text).strip().lower() == machine.name.lower():
            return Target(machine.bytes, f"on {machine.name}", card=True)
    return Target(memory(text), "given")


def memory(text: str | int | float) -> int:
    """Parse "16GB", "24 GiB", "512MB" or a plain number into bytes. Raise `InputError` for anything else."""
    match = _MEMORY.fullmatch(str(text).strip())
    size = float(match[1]) * _UNITS[match[2].lower()] if match else math.nan
    if not LEAST <= size <= MOST:
        raise InputError(f"{str(text)!r} is not an amount of memory. Write it like 16GB, 24GiB or 800MB.")
    return int(size)

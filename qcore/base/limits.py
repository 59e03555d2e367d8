"""The limits of a public server. The variable QCORE_PUBLIC_LIMITS changes them:

QCORE_PUBLIC_LIMITS="hourly=5,minutes=20,disk=5GB"
"""

import os
import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from qcore.base.errors import InputError
from qcore.base.registry import unknown

VARIABLE = "QCORE_PUBLIC_LIMITS"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(kB|MB|GB|TB)?", re.I)
_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}


@dataclass(frozen=True)
class Limits:
    """The limits of a public server. `active`: queued and running runs per visitor; `hourly`: runs per
    visitor and hour; `queue`: queued and running runs of all visitors; `minutes`: time that a run may take;
    `days`: how long runs and uploads are kept; `disk`: bytes of downloaded and made models; `uploads`: bytes
    of uploaded texts."""

    active: int = 2
    hourly: int = 10
    queue: int = 20
    minutes: float = 45.0
    days: float = 3.0
    disk: float = 20e9
    uploads: float = 200e6


def limits() -> Limits:
    """Return the limits of this server. Raise `InputError` for a variable that cannot be read."""
    return _parsed(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=4)
def _parsed(text: str) -> Limits:
    known = {each.name for each in fields(Limits)}
    changes: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise unknown("limit", name, sorted(known))
        found = _SIZE.fullmatch(value)
        number = float(found[1]) * _UNITS.get((found[2] or "").lower(), 1.0) if found else 0.0
        if number <= 0:
            raise InputError(f"{VARIABLE}: {name} is {value!r}, but it must be a number above 0.")
        changes[name] = int(number) if name in ("active", "hourly", "queue") else number
    return replace(Limits(), **changes)

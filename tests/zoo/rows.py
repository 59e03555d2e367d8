"""Results of the zoo: one row per architecture and check."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Outcome = Literal["ok", "refused", "fault", "transformers"]


@dataclass(frozen=True)
class Row:
    """What a check found. `text` is a note on how something ran for "ok", qcore's sentence for "refused",
    what went wrong for "fault", and the error of transformers' own code for "transformers"."""

    architecture: str
    check: str
    outcome: Outcome
    text: str = ""
    seconds: float = 0.0

    def line(self) -> str:
        """Return the row as one line of JSON."""
        return json.dumps(asdict(self))


def read(lines: Iterable[str]) -> list[Row]:
    """Return the rows in `lines`; other lines are skipped."""
    return [Row(**json.loads(line)) for line in lines if line.startswith('{"architecture"')]


class Fault(Exception):
    """A wrong result."""


class Upstream(Exception):
    """transformers itself cannot do what the check needs."""

"""Tables of sensitivities on disk, each in a folder named by all that decides its contents.

    QCORE_HOME/sensitivity/KEY/table.json       what was found
                               kl/00012.json    measured divergences of the block, until the walk is through

so that a recipe finds what was computed for the same model, text, formats and method, and a measurement that
was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import read_json, write_json
from qcore.base.home import home
from qcore.quantization.sensitivity.table import VERSION, Sensitivities

TABLE = "table.json"
_log = logging.getLogger(__name__)


def folder_of_tables() -> Path:
    """Where all tables lie. It may not exist yet."""
    return home() / "sensitivity"


class TableStore:
    """The folder for what `about` (JSON-ready) describes: model, text, formats, method, tokens."""

    def __init__(self, about: dict):
        self.key = hashlib.sha256(json.dumps([VERSION, about], sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder_of_tables() / self.key

    def read(self) -> Sensitivities | None:
        """The table, or None if there is none that can be read."""
        return _read(self.path / TABLE)

    def write(self, table: Sensitivities) -> None:
        """Keep the table."""
        write_json(self.path / TABLE, table.to_dict())

    def parts(self) -> dict[str, list[float]]:
        """Measured divergences of the blocks that are finished, by the layer's name."""
        found: dict[str, list[float]] = {}
        for path in sorted((self.path / "kl").glob("*.json")):
            found |= read_json(path) or {}
        return found

    def write_part(self, number: int, part: dict[str, list[float]]) -> None:
        """Keep the divergences of one block."""
        write_json(self.path / "kl" / f"{number:05d}.json", part)

    def remove_parts(self) -> None:
        """All of them stand in the table."""
        shutil.rmtree(self.path / "kl", ignore_errors=True)


def load_table(key: str) -> Sensitivities | None:
    """Return the table called `key`, or None if there is none that can be read."""
    return _read(folder_of_tables() / key / TABLE)


def tables() -> list[tuple[str, Sensitivities]]:
    """(key, table) of all that are kept, newest first."""
    paths = sorted(folder_of_tables().glob(f"*/{TABLE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = ((path.parent.name, _read(path)) for path in paths)
    return [(key, table) for key, table in found if table is not None]


def _read(path: Path) -> Sensitivities | None:
    record = read_json(path)
    try:
        return None if record is None else Sensitivities.from_dict(record)
    except InputError as error:
        _log.info("%s is of another version or damaged, so it is computed again: %s", path, error)
        return None

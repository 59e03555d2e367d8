"""Tables of sensitivities on disk, each in a folder whose name is a hash of everything that decides its
contents.

    QCORE_HOME/sensitivity/KEY/table.json       the table
                               kl/00012.json    measured divergences of a block, until all are measured

A recipe reuses the table of the same model, text, formats and method, and an interrupted measurement resumes.
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
    """Return the folder of all tables. It may not exist yet."""
    return home() / "sensitivity"


class TableStore:
    """The folder of the table that `about` (JSON-ready) describes: model, text, formats, method, tokens."""

    def __init__(self, about: dict):
        self.key = hashlib.sha256(json.dumps([VERSION, about], sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder_of_tables() / self.key

    def read(self) -> Sensitivities | None:
        """Return the table, or None if there is no readable one."""
        return _read(self.path / TABLE)

    def write(self, table: Sensitivities) -> None:
        """Write the table."""
        write_json(self.path / TABLE, table.to_dict())

    def parts(self) -> dict[str, list[float]]:
        """Return the measured divergences of the finished blocks, by the layer's name."""
        found: dict[str, list[float]] = {}
        for path in sorted((self.path / "kl").glob("*.json")):
            found |= read_json(path) or {}
        return found

    def write_part(self, number: int, part: dict[str, list[float]]) -> None:
        """Write the measured divergences of one block."""
        write_json(self.path / "kl" / f"{number:05d}.json", part)

    def remove_parts(self) -> None:
        """Remove the files per block, once the table contains them."""
        shutil.rmtree(self.path / "kl", ignore_errors=True)


def load_table(key: str) -> Sensitivities | None:
    """Return the table called `key`, or None if there is no readable one."""
    return _read(folder_of_tables() / key / TABLE)


def tables() -> list[tuple[str, Sensitivities]]:
    """Return (key, table) of all stored tables, newest first."""
    paths = sorted(folder_of_tables().glob(f"*/{TABLE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = ((path.parent.name, _read(path)) for path in paths)
    return [(key, table) for key, table in found if table is not None]


def _read(path: Path) -> Sensitivities | None:
    record = read_json(path)
    try:
        return None if record is None else Sensitivities.from_dict(record)
    except InputError as error:
        _log.info("%s has another version or is damaged, so it is computed again: %s", path, error)
        return None

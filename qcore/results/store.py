"""All results of all runs in one SQLite file, for queries across runs. The run folders are authoritative: the
database can be rebuilt from them.

Every writer opens its own connection. Write-ahead logging and a busy timeout let fifty processes write at
once without loss; a kill during a write leaves the old row or the new one. A file that SQLite cannot read is
renamed, a new one is built from the run folders, and `notice` reports it.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from qcore.base.errors import InputError, QcoreError
from qcore.base.files import finite
from qcore.base.home import home
from qcore.base.process import holder
from qcore.base.turn import held
from qcore.results.folder import RunFolder, run_ids
from qcore.results.rows import ResultRow
from qcore.results.verdicts import with_verdicts

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, created_at REAL NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS rows (
    run_id TEXT NOT NULL, position INTEGER NOT NULL, model TEXT, recipe TEXT NOT NULL, status TEXT NOT NULL,
    row TEXT NOT NULL,
    PRIMARY KEY (run_id, position)
);
CREATE INDEX IF NOT EXISTS rows_by_model ON rows (model, status);
"""
BUSY_SECONDS = 15.0  # for which a lock of another process is waited for
_checked: dict[
    Path, tuple[int, int, int] | None
] = {}  # databases found intact, with their state at that time
_log = logging.getLogger(__name__)


class Store:
    """The database at `path` (None: `qcore.db` in the cache folder).

    `notice` is a sentence for the user if the database had to be replaced, by this process or another, until
    `clear_notice`.
    """

    def __init__(self, path: Path | None = None):
        self.path = Path(path) if path is not None else home() / "qcore.db"
        self._notice = self.path.with_name(self.path.name + ".notice")
        self._behind = self.path.with_name(self.path.name + ".behind")
        look = _look_of(self.path)
        if look is not None and _checked.get(self.path) == look and not self._behind.exists():
            return
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with held(lock, BUSY_SECONDS):
                try:
                    self._prepare()
                    self._catch_up()
                except (
                    sqlite3.DatabaseError,
                    UnicodeDecodeError,
                ) as error:  # the latter: a message of SQLite
                    if isinstance(error, sqlite3.OperationalError):
                        raise self._refused(error) from error
                    self._set_aside(error)
            _checked[self.path] = _look_of(self.path)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"The database {self.path} cannot be opened ({reason}); set QCORE_HOME to a "
                "folder that can be written."
            ) from error

    @property
    def notice(self) -> str | None:
        try:
            return self._notice.read_text(encoding="utf-8")
        except OSError:
            return None

    def clear_notice(self) -> None:
        """Mark the notice as seen."""
        self._notice.unlink(missing_ok=True)

    def put_run(self, run_id: str, created_at: float, state: str, status: Mapping[str, Any]) -> None:
        """Insert or replace the run's own line."""
        with self._connection() as db:
            _put_run(db, run_id, created_at, state, status)

    def put_row(self, run_id: str, position: int, row: ResultRow) -> None:
        """Insert or replace the row of the recipe at `position` of a run."""
        with self._connection() as db:
            _put_row(db, run_id, position, row)

    def rows(self, run_id: str) -> list[ResultRow]:
        """Return the rows of one run, in the requested order of recipes."""
        with self._connection() as db:
            found = db.execute(
                "SELECT row FROM rows WHERE run_id = ? ORDER BY position", (run_id,)
            ).fetchall()
        return [row for (text,) in found if (row := self._read(run_id, text)) is not None]

    def runs(self) -> list[dict]:
        """Return all runs, newest first: run_id, created_at, state."""
        with self._connection() as db:
            found = db.execute(
                "SELECT run_id, created_at, state FROM runs ORDER BY created_at DESC"
            ).fetchall()
        return [dict(zip(("run_id", "created_at", "state"), line, strict=True)) for line in found]

    def latest(self, model: str | None = None, limit: int = 100) -> list[dict]:
        """Return the newest successful rows (of one model), newest first, each with its `run_id`."""
        where, values = ("AND rows.model = ?", [model]) if model is not None else ("", [])
        with self._connection() as db:
            found = db.execute(
                "SELECT rows.run_id, rows.row FROM rows LEFT JOIN runs USING (run_id) "
                "WHERE rows.status = 'ok' "
                f"{where} ORDER BY runs.created_at DESC, rows.position LIMIT ?",
                [*values, limit],
            ).fetchall()
        rows = ((run_id, self._read(run_id, text)) for run_id, text in found)
        return [{"run_id": run_id, **row} for run_id, row in rows if row is not None]

    def _read(self, run_id: str, text: object) -> ResultRow | None:
        """Return the row in `text`, or None if it is damaged, which is logged."""
        try:
            row = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            return cast(ResultRow, row)
        _log.warning("a row of the run %s in %s is damaged and is left out", run_id, self.path)
        return None

    def delete(self, run_id: str) -> None:
        """Delete a run and its rows."""
        with self._connection() as db:
            db.execute("DELETE FROM rows WHERE run_id = ?", (run_id,))
            db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))

    def put_end(self, run_id: str, about: Mapping[str, Any], rows: Mapping[int, ResultRow]) -> None:
        """Insert or replace a run and its rows, all or none."""
        with self._connection() as db:
            for position, row in rows.items():
                _put_row(db, run_id, position, row)
            _put_run(db, run_id, about.get("created_at") or 0.0, about.get("state") or "interrupted", about)

    def rebuild(self, ids: Iterable[str] | None = None) -> int:
        """Insert the folders of these runs (None: of all) again; return the number of runs."""
        found = run_ids() if ids is None else list(ids)
        for run_id in found:
            folder = RunFolder(run_id)
            self.put_end(run_id, folder.read("status.json") or {}, judged_rows(folder))
        return len(found)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection in a transaction. Raise `InputError` if the database stays locked or cannot be
        read or written."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as db:
                db.execute("PRAGMA synchronous = NORMAL")
                with db:
                    yield db
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> InputError:
        if getattr(error, "sqlite_errorname", None) not in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return InputError(f"The database {self.path} cannot be opened: {error}.")
        files = (self.path.with_name(self.path.name + suffix) for suffix in ("", "-shm", "-wal"))
        return InputError(
            f"The database {self.path} cannot be opened: {holder(*files)} has locked it for "
            f"{BUSY_SECONDS:.0f} seconds. Wait for that process, or end it."
        )

    def _prepare(self) -> None:
        with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"The database {self.path} was made by a newer qcore; update qcore or set "
                    "QCORE_HOME to another folder."
                )
            if version == SCHEMA_VERSION and db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
                return
            if version == SCHEMA_VERSION:
                raise sqlite3.DatabaseError("the file is damaged")
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(SCHEMA)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @property
    def _is_main(self) -> bool:
        return self.path == home() / "qcore.db"

    def _catch_up(self) -> None:
        """Insert runs that ended while the database was locked or could not be written."""
        if self._is_main and self._behind.exists():
            self._behind.unlink(missing_ok=True)
            known = {run["run_id"] for run in self.runs()}
            self.rebuild(
                run_id
                for run_id in run_ids()
                if run_id not in known and (RunFolder(run_id).path / "result.json").exists()
            )

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(
            f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
        )
        self.path.replace(aside)
        for suffix in (
            "-wal",
            "-shm",
        ):  # the -wal and -shm files belong to the damaged file and must not be applied to the new one
            leftover = self.path.with_name(self.path.name + suffix)
            if leftover.exists():
                leftover.replace(aside.with_name(aside.name + suffix))
        self._prepare()
        found = self.rebuild() if self._is_main else 0
        notice = (
            f"The database of results could not be read ({error}). It was set aside as "
            f"{aside.name}, and a new one was started with "
            f"the {found} runs found in their folders."
        )
        self._notice.write_text(notice, encoding="utf-8")
        _log.warning(notice)


def keep_row(folder: RunFolder, position: int, row: ResultRow) -> None:
    """Insert a row that the run folder already holds. A database error is logged, not raised: the row is
    safe, and `rebuild` finds it."""
    try:
        Store().put_row(folder.run_id, position, row)
    except (QcoreError, OSError, sqlite3.Error) as error:
        _log.warning(
            "The row of %s is in the run's folder, but not in the database: %s", row["recipe"], error
        )


def judged_rows(folder: RunFolder, margin: float | None = None) -> dict[int, ResultRow]:
    """Return the rows finished so far with their verdicts, in order of position."""
    rows = dict(sorted(folder.rows().items()))
    return dict(zip(rows, with_verdicts(list(rows.values()), margin), strict=True))


def keep_end(folder: RunFolder, about: Mapping[str, Any]) -> None:
    """Write the end of a run: `result.json` with everything, the database, and last the status, which others
    wait for."""
    rows = judged_rows(folder)
    folder.write("result.json", {**about, "spec": folder.read("spec.json"), "rows": list(rows.values())})
    try:
        Store().put_end(folder.run_id, about, rows)
    except (QcoreError, OSError, sqlite3.Error) as error:
        _log.warning("The results are in the run's folder, but not in the database: %s", error)
        with suppress(OSError):
            (home() / "qcore.db.behind").touch()
    folder.write("status.json", about)


def _look_of(path: Path) -> tuple[int, int, int] | None:
    """Return a stamp that changes with the main file of a database; None if there is no file. Rows go to
    another file first, so many writes leave the stamp unchanged."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _put_run(
    db: sqlite3.Connection, run_id: str, created_at: float, state: str, status: Mapping[str, Any]
) -> None:
    db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", (run_id, created_at, state, _dump(status)))


def _put_row(db: sqlite3.Connection, run_id: str, position: int, row: ResultRow) -> None:
    model = (row.get("record") or {}).get("model")
    db.execute(
        "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)",
        (run_id, position, model, row["recipe"], row["status"], _dump(row)),
    )


def _dump(value) -> str:
    return json.dumps(finite(value), ensure_ascii=True, allow_nan=False)

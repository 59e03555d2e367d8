"""The folder in which a model is written shard by shard, and the record of its finished shards.

It lies beside the target folder. Its name is derived from source, recipe, shard size and the versions that
determine the bytes. A shard gets its final name when it is complete and on the disk, and is then recorded
with its SHA-256. So work that was killed resumes at its first unfinished shard, and different work never
reuses its shards. A lock admits one process at a time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from qcore.base.errors import InputError
from qcore.base.files import read_json, settle, swap, tidy, write_json

VERSION = 1  # increased whenever the same recipe writes different bytes
_NOTE, _LOCK = "finished.json", ".lock"


class Journal:
    """Context manager for the work that `identity` (JSON-ready) describes and that ends in the folder
    `final`, an absolute path.

    Entering raises `InputError` if another process does the same work, `OSError` if the disk cannot be
    written.
    """

    def __init__(self, final: Path, identity: dict):
        key = hashlib.sha256(json.dumps([VERSION, identity], sort_keys=True).encode()).hexdigest()[:12]
        self.final = final
        self.folder = final.parent / f".{final.name}.streaming-{key}"
        self._lock = FileLock(str(self.folder / _LOCK))

    def __enter__(self) -> Journal:
        self.folder.mkdir(parents=True, exist_ok=True)
        tidy(self.final)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"Another process is already writing {self.final}. Wait for it, or stop it."
            ) from None
        try:
            self._forget_others()
            self._forget_halves()
            note = read_json(self.folder / _NOTE)
            shards = note.get("shards") if isinstance(note, dict) else None
            if not isinstance(shards, dict):
                self._empty()
                shards = {}
                write_json(self.folder / _NOTE, {"shards": shards})
            self._finished = shards
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._lock.release()

    def finished(self, file: str) -> str | None:
        """Return the SHA-256 of a finished shard, else None."""
        note = self._finished.get(file)
        path = self.folder / file
        return note["sha256"] if note and path.is_file() and path.stat().st_size == note["bytes"] else None

    def note(self, file: str, sha256: str) -> None:
        """Record a finished shard and its SHA-256."""
        self._finished[file] = {"sha256": sha256, "bytes": (self.folder / file).stat().st_size}
        write_json(self.folder / _NOTE, {"shards": self._finished})

    def publish(self) -> None:
        """Give the finished folder its final name, replacing an existing folder."""
        self._forget_halves()
        settle(self.folder)  # takes seconds; once the note is removed, a kill costs the finished shards
        (self.folder / _NOTE).unlink(missing_ok=True)
        (self.folder / _LOCK).unlink(missing_ok=True)
        swap(self.folder, self.final)

    def _forget_halves(self) -> None:
        """Remove the temporary files of shards, and of files beside them, whose writer was killed."""
        for pattern in (".*.partial", ".*.tmp"):
            for path in self.folder.rglob(pattern):
                path.unlink(missing_ok=True)

    def _empty(self) -> None:
        """Remove everything from a folder without a note: after a kill in the middle of `publish` it may hold
        the model that was replaced."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()

    def _forget_others(self) -> None:
        """Remove unfinished folders of other recipes or sources for the same target, unless a process works
        in them."""
        for other in self.final.parent.glob(f".{self.final.name}.streaming-*"):
            if other == self.folder:
                continue
            lock = FileLock(str(other / _LOCK))
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue
            shutil.rmtree(other, ignore_errors=True)
            lock.release()

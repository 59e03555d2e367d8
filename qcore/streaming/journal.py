"""The folder in which a model is written shard by shard, and the note of what is finished in it.

It lies beside the folder that is wanted and has a name of its own for each piece of work: source, recipe,
shard size and the versions that decide the bytes. A shard has its final name only when it is whole and on the
disk, and is noted after that with its SHA-256. So work that was killed goes on at the shard it had come to,
and other work never takes its shards up. Only one process at a time works in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from qcore.base.errors import InputError
from qcore.base.files import publish, read_json, write_json

VERSION = 1  # goes up whenever the same recipe writes other bytes than before
_NOTE, _LOCK = "finished.json", ".lock"


class Journal:
    """Context manager for the work that `identity` (JSON-ready) describes and that ends in the folder
    `final`, an absolute path.

    Entering raises `InputError` if another process does the same work, `OSError` if the disk refuses.
    """

    def __init__(self, final: Path, identity: dict):
        key = hashlib.sha256(json.dumps([VERSION, identity], sort_keys=True).encode()).hexdigest()[:12]
        self.final = final
        self.folder = final.parent / f".{final.name}.streaming-{key}"
        self._lock = FileLock(str(self.folder / _LOCK))

    def __enter__(self) -> Journal:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"Another process is writing {self.final} already. Wait for it, or end it."
            ) from None
        try:
            self._forget_others()
            self._forget_halves()
            note = read_json(self.folder / _NOTE)
            shards = note.get("shards") if isinstance(note, dict) else None
            self._finished = shards if isinstance(shards, dict) else {}
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._lock.release()

    def finished(self, file: str) -> str | None:
        """Return the SHA-256 of a shard that is whole, else None."""
        note = self._finished.get(file)
        path = self.folder / file
        return note["sha256"] if note and path.is_file() and path.stat().st_size == note["bytes"] else None

    def note(self, file: str, sha256: str) -> None:
        """A shard is finished."""
        self._finished[file] = {"sha256": sha256, "bytes": (self.folder / file).stat().st_size}
        write_json(self.folder / _NOTE, {"shards": self._finished})

    def publish(self) -> None:
        """Give the finished folder its final name, in place of what may be there."""
        self._forget_halves()
        (self.folder / _NOTE).unlink(missing_ok=True)
        (self.folder / _LOCK).unlink(missing_ok=True)
        publish(self.folder, self.final)

    def _forget_halves(self) -> None:
        """Remove the temporary files of shards whose writer was killed."""
        for path in self.folder.glob(".*.partial"):
            path.unlink(missing_ok=True)

    def _forget_others(self) -> None:
        """Remove what other recipes or sources left unfinished for the same folder, unless somebody is at
        it."""
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

"""What a public server grants a visitor: which requests, and how many runs; see `qcore.base.limits`.

A visitor is an opaque word (see `ui/visitor.py`). The job keeps it as its owner, in status.json. `SAMPLE` in
its place makes a finished run visible to everybody.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.base.home import home
from qcore.base.limits import limits
from qcore.base.texts import DEFAULT, WIKITEXT
from qcore.jobs.status import COMPARE, JobStatus

SAMPLE = "everybody"
HOUR = 3600.0
RECIPES = 8  # per run
UPLOAD = 5_000_000  # bytes of a text
LARGEST: dict[str, dict[str, float]] = {  # per kind of job, the largest value of each field
    COMPARE: {
        "tokens": 4096,
        "window": 1024,
        "prompt_tokens": 512,
        "new_tokens": 64,
        "generate_tokens": 48,
        "repeats": 3,
        "calibration_tokens": 16384,
    },
    "qat": {"options.schedule.minutes": 10, "options.tokens": 262144, "options.window": 256},
    "distill": {"options.schedule.minutes": 10, "options.tokens": 262144, "options.window": 256},
    "sensitivity": {"measure_tokens": 0},
    "audit": {"values": False},  # every byte of a model
}
_NAMES = {"text", "choices", "prompts", "calibration", "imatrix", "validation"}  # fields that may name files


def admit(visitor: str, jobs: Iterable[JobStatus]) -> None:
    """Raise `InputError` if `visitor` may not submit another job beside `jobs`, all jobs of the server."""
    allowed, now = limits(), time.time()
    own_active = own_recent = active = 0
    for job in jobs:
        active += job.active
        if job.owner == visitor:
            own_active += job.active
            own_recent += now - (job.created_at or 0) < HOUR
    if own_active >= allowed.active:
        raise InputError(
            f"You have {own_active} runs that have not ended, and this server allows {allowed.active}. Wait "
            "for one, or cancel it."
        )
    if own_recent >= allowed.hourly:
        raise InputError(
            f"You started {own_recent} runs in the last hour, and this server allows {allowed.hourly}. Try "
            "again later."
        )
    if active >= allowed.queue:
        raise InputError(f"The queue is full: {active} runs wait or run. Try again later.")


def check_request(record: dict[str, Any]) -> None:
    """Raise `InputError` for a request (its dictionary) that names anything but hub ids, default models and
    the files that this server made itself."""
    from qcore.models.names import classify

    classify(record["model"], record.get("revision"), public=True)
    if len(recipes := record.get("recipes") or ()) > RECIPES:
        raise InputError(f"This server allows {RECIPES} recipes per run; {len(recipes)} are chosen.")
    for path, largest in LARGEST.get(record.get("kind", COMPARE), {}).items():
        value = _at(record, path)
        if value is not None and value > largest:
            name = path.rpartition(".")[2]
            raise InputError(f"{name} is {value}, but this server allows {largest:g} at most.")
    for name, value in _files(record):
        if value not in (None, DEFAULT, WIKITEXT) and not _is_upload(str(value)):
            raise InputError(f"{name} names a file, and this server reads no files except your uploads.")
    for recipe in _recipes(record):
        if (folder := (recipe.get("weights") or {}).get("folder")) is not None:
            classify(folder, public=True)
    out = record.get("out")
    if out is not None and Path(out).resolve().parent != (home() / "made").resolve():
        raise InputError("This server chooses the folder of a result itself.")
    if record.get("overwrite") or record.get("address"):
        raise InputError("This server neither overwrites models nor connects to other machines.")


def _at(record: dict[str, Any], path: str) -> Any:
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _files(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the fields of a request that may name files, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _NAMES and not isinstance(inner, dict | list):
                yield key, inner
            else:
                yield from _files(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _files(inner, name)


def _recipes(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    single = record.get("recipe"), _at(record, "options.recipe")
    yield from (value for value in (*(record.get("recipes") or ()), *single) if isinstance(value, dict))


def _is_upload(name: str) -> bool:
    path = Path(name)
    return re.fullmatch(r"[0-9a-f]{24}\.txt", path.name) is not None and path.parent == home() / "texts"

"""Writes the shards of a streamed quantization on the machines of a Ray cluster with shared storage.

Shards depend only on the checkpoint and the recipe, so each is a task: `python -m
qcore.streaming.shard_worker`. The calling process keeps the journal and records each finished shard. After a
kill, the same command resumes with the missing shards, on a cluster or not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from qcore.base import errors
from qcore.base.cluster import Cluster, Task
from qcore.base.errors import QcoreError, RunError
from qcore.base.executor import Executor
from qcore.base.files import read_json, write_json
from qcore.library.journal import Journal
from qcore.models import Checkpoint
from qcore.recipes import Recipe
from qcore.streaming.layout import Layout, Shard
from qcore.streaming.meter import ThroughputMeter

FOLDER, REQUEST, LOG = "spread", "request.json", "log.txt"
LOOK_SECONDS = 0.3


def write_shards(
    engine: Executor,
    checkpoint: Checkpoint,
    recipe: Recipe,
    shard_bytes: int,
    layout: Layout,
    left: list[Shard],
    journal: Journal,
    meter: ThroughputMeter,
    sizes: dict[str, int],
) -> dict[str, str]:
    """Write the shards `left` of `layout` to the journal's folder on the cluster, and return {file: SHA-256}.
    `sizes` are the source bytes of each file.

    Raise the error of a shard's task, and `RunError` if a task cannot run.
    """
    folder = journal.folder / FOLDER
    folder.mkdir(exist_ok=True)
    request = {
        "folder": str(checkpoint.folder),
        "digest": checkpoint.digest,
        "recipe": recipe.to_dict(),
        "shard_bytes": shard_bytes,
    }
    write_json(folder / REQUEST, request)
    numbers = {shard.file: number for number, shard in enumerate(layout.shards)}
    digests: dict[str, str] = {}
    with Cluster(engine) as cluster:
        processors = cluster.processors()
        tasks: dict[Task, Shard] = {}
        for shard in left:
            (folder / f"{shard.file}.json").unlink(missing_ok=True)
            command = [
                "-m",
                "qcore.streaming.shard_worker",
                str(folder / REQUEST),
                str(numbers[shard.file]),
                shard.file,
            ]
            tasks[
                cluster.submit(shard.file, command, folder / LOG, processors, folder / f"{shard.file}.tries")
            ] = shard
        try:
            while tasks:
                for task in cluster.ended(list(tasks), LOOK_SECONDS):
                    shard = tasks.pop(task)
                    digests[shard.file] = _result(folder, shard, cluster.code(task))
                    journal.note(shard.file, digests[shard.file])
                    meter.step(sizes[shard.file], shard.file)
        finally:
            cluster.cancel(list(tasks))
    return digests


def clear(journal: Journal) -> None:
    """Remove the tasks' files beside the shards."""
    shutil.rmtree(journal.folder / FOLDER, ignore_errors=True)


def _result(folder: Path, shard: Shard, code: int) -> str:
    """Return the SHA-256 reported by the task, or raise the error that it reported."""
    result = read_json(folder / f"{shard.file}.json")
    if result is None:
        raise RunError(
            f"The process that made {shard.file} ended with exit code {code}; {folder / LOG} has the details."
        )
    if "error" in result:
        raise getattr(errors, result["error"], QcoreError)(result["message"])
    return result["sha256"]

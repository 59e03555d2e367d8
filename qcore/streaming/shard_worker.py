"""`python -m qcore.streaming.shard_worker REQUEST NUMBER FILE`: writes one shard of a streamed quantization,
see `spread.py`.

REQUEST is a JSON file in the folder spread/ of the unfinished model; the result is written beside it, named
after the shard FILE. Standard input is a lifeline: when it closes, the parent has ended, and this process
exits.
"""

import sys
from pathlib import Path

from qcore.base import logs
from qcore.base.errors import InputError, QcoreError
from qcore.base.files import read_json, write_json
from qcore.base.process import lifeline
from qcore.base.quiet import silence


def make(request: dict, number: int, folder: Path) -> dict:
    """Write shard `number` of the request to `folder` and return {"sha256": …}. Raise `InputError` if this
    machine finds different weights."""
    from qcore.models.checkpoint import read_folder
    from qcore.recipes import Recipe
    from qcore.streaming.layout import plan
    from qcore.streaming.quantizing import fill_shard
    from qcore.streaming.source import Source

    source = Path(request["folder"])
    checkpoint = read_folder(source, source.name, "folder", "")
    if checkpoint.digest != request["digest"]:
        raise InputError(
            f"A machine of the cluster finds different weights in {source}. All machines must share that "
            "folder."
        )
    described = Source(checkpoint)
    shard = plan(described.model, Recipe.from_dict(request["recipe"]), request["shard_bytes"]).shards[number]
    return {"sha256": fill_shard(described, shard, folder).close()}


def main(arguments: list[str]) -> int:
    """Return 0 if the shard is complete, 1 if the result holds the reason why not."""
    path, number, file = Path(arguments[0]), int(arguments[1]), arguments[2]
    silence()
    logs.configure()
    lifeline()
    try:
        result = make(read_json(path), number, path.parent.parent)
    except QcoreError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    write_json(path.parent / f"{file}.json", result)
    return int("error" in result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

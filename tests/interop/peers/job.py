"""The job of a runtime's script, read from standard input (see runtimes.py): the paths of models by name, the
tokens, and the file for the logits. Imports nothing of qcore."""

import json
import sys
import traceback
from collections.abc import Callable

import numpy as np

JOB = json.load(sys.stdin)
exec(JOB["setup"])


def run(logits: Callable[[str, list[int]], np.ndarray]) -> None:
    """Write what `logits` (path, ids (T,)) -> (T, V) returns for each model, or the traceback."""
    arrays, errors = {}, {}
    for name, path in JOB["models"].items():
        try:
            arrays[name] = np.asarray(logits(path, JOB["ids"]), np.float32)
        except Exception:
            errors[name] = traceback.format_exc()
    np.savez(JOB["out"], **arrays)
    with open(f"{JOB['out']}.json", "w") as file:
        json.dump(errors, file)

"""One row of `quality.py`, in a process of its own: load the model, quantize it, score it, print the row.

    python -m benchmarks.quality_row '{"module": …, "item": …, "model": …, …}'

Lines on standard output are JSON: {"say": "…"} for progress, then {"row": {…}} or {"error": "…"}. Output of
libraries goes to standard error. Memory, threads and patches of one library never affect the next.
"""

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.quantizers import Job, Stored, check_layers, linears, quantizer
from qcore import library
from qcore.base import texts
from qcore.base.errors import QcoreError
from qcore.base.other_work import OtherWork
from qcore.base.quiet import silence
from qcore.evaluation.perplexity import evaluate
from qcore.evaluation.reference import Reference
from qcore.quantization.calibration import check_overlap, load_calibration


def row(options: dict, say: Callable[[str], None]) -> dict:
    """Measure one method; return its row, JSON-ready. `options` are sent by `quality.py`; the file
    "reference" is created if missing."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    say("loading the model")
    loaded = library.load(options["model"])
    text = texts.load_text(options["text"])
    ids = texts.tokenize(text, loaded.tokenizer, limit=options["tokens"])
    layers = options.get("layers")
    expected = frozenset(linears(loaded.model, layers))

    def calibration(tokenizer):
        found = load_calibration(
            options["calibration"],
            tokenizer,
            tokens=options["calibration_tokens"],
            window=options["window"],
            minutes=options["minutes"],
        )
        check_overlap(found, text.name, text.sha256, ids)
        return found

    def score(**more):
        return evaluate(
            loaded.model,
            ids,
            window=options["window"],
            progress=lambda done, total, phrase: say(f"scoring, {phrase}"),
            **more,
        )

    reference = Path(options["reference"])
    baseline = options["item"] == "fp32"
    if baseline and not reference.exists():
        reference.parent.mkdir(parents=True, exist_ok=True)
        score(record=reference, checkpoint=loaded.checkpoint.folder)
    with tempfile.TemporaryDirectory(prefix="qcore-quality-") as scratch:
        job = Job(loaded, options["item"], options["threads"], Path(scratch), calibration, say, layers)
        stored, seconds, busy = clocked(lambda: quantizer(options["module"])(job))
    if not baseline:
        check_layers(stored, expected)
    found = score(reference=Reference.open(reference))
    divergence = found.divergence
    return {
        "bits_per_weight": stored.bits_per_weight,
        "perplexity": found.perplexity,
        "kl_mean": divergence.kl_mean,
        "top1_agreement": divergence.top1_agreement,
        "seconds": seconds,
        "stored_bytes": stored.nbytes,
        "weights": stored.weights,
        "kl_median": divergence.kl_median,
        "kl_p99": divergence.kl_p99,
        "window_kl": divergence.window_kl,
        "tokens_scored": found.tokens_scored,
        "others_busy": busy,
        "peak_bytes": _peak(),
        "notes": list(stored.notes),
        "details": stored.details,
        "measured_at": time.time(),
    }


def clocked(call) -> tuple[Stored, float, float]:
    """Return the result of `call`, its seconds, and the processors that other programs kept busy."""
    others, began = OtherWork(), time.monotonic()
    result = call()
    return result, time.monotonic() - began, others.cores()


def _peak() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(options: str) -> int:
    """Print the row, or the error."""
    silence()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # all later output goes to a log, C code's output included

    def answer(**content) -> None:
        answers.write(json.dumps(content) + "\n")

    try:
        answer(row=row(json.loads(options), lambda text: answer(say=text)))
    except QcoreError as error:
        answer(error=str(error))
        return 1
    except (
        Exception
    ) as error:  # an error of a library: the row reports it and is left out, the others continue
        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

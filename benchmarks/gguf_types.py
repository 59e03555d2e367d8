"""Quality of GGUF's types: qcore's codes beside llama.cpp's in the same type, from the same weights, in one
run.

    pip install -r benchmarks/requirements-quality.txt        (once; compiles llama.cpp) python
    benchmarks/make_trained.py TINY --text valid.txt   (a model whose rows are whole super-blocks) python
    benchmarks/gguf_types.py --trained TINY --text …/wikitext-2-raw/wiki.test.raw --calibration …/valid.txt

Each row is one method in a process of its own, as in `quality.py`, and is scored in the same way. llama.cpp
has an importance matrix of the calibration text that qcore reads. The default model's rows of 576 inputs are
not whole super-blocks, so its K-quants are compared on the down projections (1,536 inputs) alone, and on a
small trained model everywhere. A complete run is saved in `benchmarks/results/`, and `python
benchmarks/gguf_table.py` writes the newest result into docs/benchmarks.md. An interrupted run resumes.
"""

import argparse
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from benchmarks import gguf_table, quality, quality_cache, quality_plan  # noqa: E402
from benchmarks.quality_plan import BASELINE, Method  # noqa: E402
from qcore.base.errors import InputError, QcoreError  # noqa: E402
from qcore.base.home import home  # noqa: E402
from qcore.base.quiet import silence  # noqa: E402
from qcore.cli.progress import Show  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402
from qcore.quantization.calibration.text import TOKENS  # noqa: E402

DOWN = "down_proj"
TITLE = "a small model that make_trained.py made"  # a result names no path
NEEDS = ("llama-cpp-python", "gguf")


@dataclass(frozen=True)
class Pair:
    """llama.cpp's file type `theirs` beside qcore's recipe `ours`, on the linear layers called `layers`
    (None: all). Our mean KL may be at most `bar` times theirs."""

    theirs: str
    ours: str
    layers: str | None = None
    bar: float = 1.0


DEFAULT = (
    Pair("Q4_0", "gguf-q4_0-gptq", bar=0.42),
    Pair("Q4_1", "gguf-q4_1-gptq", bar=0.9),
    Pair("IQ4_NL", "gguf-iq4_nl-gptq", bar=0.7),
    Pair("Q4_K_M", "gguf-q4_k_m-gptq"),
    Pair("Q2_K pure", "gguf-q2_k-gptq", DOWN),
    Pair("Q3_K_S pure", "gguf-q3_k-gptq", DOWN),
    Pair("Q4_K_S pure", "gguf-q4_k-gptq", DOWN),
    Pair("Q5_K_S pure", "gguf-q5_k-gptq", DOWN),
    Pair("Q6_K pure", "gguf-q6_k-gptq", DOWN),
)
TRAINED = (
    *(Pair(pair.theirs, pair.ours) for pair in DEFAULT if pair.layers),
    *(Pair(pair.theirs, pair.ours) for pair in DEFAULT if not pair.layers),
)


def run(options: argparse.Namespace) -> dict:
    """Run all rows of both models; return the object to be saved."""
    began, models = time.time(), []
    with Show() as show:
        for model, pairs in ((options.model, DEFAULT), (options.trained, TRAINED)):
            if model:
                models.append(_of_model(options, model, _chosen(pairs, options.only), show))
    packages = quality.installed()
    return {
        "models": models,
        "environment": environment() | {"threads": options.threads, "libraries": packages},
        "started_at": began,
        "seconds": time.time() - began,
    }


def _chosen(pairs: tuple[Pair, ...], names: str | None) -> list[Pair]:
    wanted = quality.names(names)
    return [pair for pair in pairs if not wanted or pair.theirs.split()[0] in wanted]


def _of_model(options: argparse.Namespace, model: str, pairs: list[Pair], show: Show) -> dict:
    conditions = quality.conditions_of(argparse.Namespace(**{**vars(options), "model": model}))
    folder = (options.cache or home() / "benchmarks") / "quality"
    reference = str(folder / f"{quality.reference_name(conditions)}.safetensors")
    settings = {**vars(options), "model": model, "cache": None, "json": None, "reference": reference}
    steps = 2 * len(pairs) + 1

    def measured(method: Method, layers: str | None, step: int) -> dict:
        key = quality_cache.key(method, conditions | ({"layers": layers} if layers else {}))
        found = None if options.fresh else quality_cache.read(folder, method, key)
        if found is None:
            say = f"{method.name}{f' on {layers}' if layers else ''} ({step} of {steps})"
            found = quality.measure(
                method, {**settings, "layers": layers}, lambda text: show.run(0.0, f"{say}: {text}", say)
            )
            quality_cache.write(folder, method, key, found)
        return {"name": method.name, **found}

    baseline = measured(Method(BASELINE, "own", BASELINE, own=True), None, 1)
    rows = []
    for place, pair in enumerate(pairs):
        theirs = Method(f"llama.cpp {pair.theirs}", "llamacpp", f"{pair.theirs} with imatrix", NEEDS)
        ours = Method(pair.ours, "own", pair.ours, own=True)
        row = {
            "type": pair.theirs,
            "layers": pair.layers,
            "bar": pair.bar,
            "theirs": measured(theirs, pair.layers, 2 * place + 2),
            "ours": measured(ours, pair.layers, 2 * place + 3),
        }
        rows.append(row)
        print(gguf_table.line(row), flush=True)
    title = model if "/" not in model else TITLE
    return {"model": title, "baseline": baseline, "pairs": rows, "conditions": conditions | {"model": title}}


def main() -> int:
    """Parse the options, measure, print the table. Return exit status 0, 1 after a failure, 2 if the
    benchmark cannot start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=quality_plan.MODEL, help="empty: only the trained model")
    parser.add_argument("--trained", metavar="FOLDER", help="a model that make_trained.py made")
    parser.add_argument("--text", metavar="FILE", help="text to score; default: the packaged text")
    parser.add_argument("--calibration", metavar="FILE", help="calibration text; default: the packaged text")
    parser.add_argument("--tokens", type=int, default=quality_plan.TOKENS, help="tokens to score")
    parser.add_argument("--window", type=int, default=quality_plan.WINDOW)
    parser.add_argument("--calibration-tokens", type=int, default=TOKENS)
    parser.add_argument("--only", metavar="TYPES", help="only these file types, comma-separated: Q4_0,Q4_K_S")
    parser.add_argument("--threads", type=int, default=2, help="processor threads of each program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="folder of measured rows")
    options = parser.parse_args()
    options.minutes = None
    silence()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a row's process is ended as well
    try:
        quality.check(options)
        options.text, options.calibration = (
            quality.absolute(options.text),
            quality.absolute(options.calibration),
        )
        options.trained = options.trained and str(Path(options.trained).absolute())
        result = run(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except QcoreError as error:
        print(error, file=sys.stderr)
        return 1
    target = options.json or (None if options.only else quality.RESULTS / gguf_table.file_name(result))
    print(gguf_table.page(result))
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Quality at each number of bits: qcore's recipes beside other programs' quantizers, in one run, from the
same weights.

    pip install -r benchmarks/requirements-quality.txt        (once; compiles llama.cpp)
    python benchmarks/quality.py --text …/wikitext-2-raw/wiki.test.raw --calibration …/wikitext-2/valid.txt
                                 [--recipes NAMES] [--only NAMES]

Each row is one method in a process of its own: it quantizes the linear layers in the blocks, and qcore's own
evaluation scores the model over 8,192 tokens in windows of 512 against the float32 baseline.
`quality_plan.py` lists the methods and the bars; `quantizers/` runs the methods. Without --text and
--calibration, qcore's packaged texts are used. An interrupted run resumes where it stopped. A complete run is
saved in `benchmarks/results/`, and `python benchmarks/quality_table.py` writes the newest result into the
README. The last line is JSON: [{"name", "bits_per_weight", "perplexity", "kl_mean", "top1_agreement",
"seconds"}, …].
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from benchmarks import pipe, quality_cache, quality_plan, quality_table  # noqa: E402
from qcore import library  # noqa: E402
from qcore.base import texts  # noqa: E402
from qcore.base.errors import InputError, QcoreError, RunError  # noqa: E402
from qcore.base.home import home  # noqa: E402
from qcore.base.quiet import silence  # noqa: E402
from qcore.cli.progress import Show  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402
from qcore.quantization.calibration.text import TOKENS, calibration_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch",
    "transformers",
    "bitsandbytes",
    "optimum-quanto",
    "llama-cpp-python",
    "gguf",
    "hqq",
    "gptqmodel",
    "auto-round",
    "numpy",
)
LINE = ("name", "bits_per_weight", "perplexity", "kl_mean", "top1_agreement", "seconds")


def installed() -> dict[str, str]:
    """Return the versions of the packages that take part, without importing them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def names(given: str | None) -> list[str]:
    """Split a comma-separated list of names."""
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def run(options: argparse.Namespace) -> dict:
    """Run all requested rows; return the object to be saved."""
    own, missing = quality_plan.own_methods(names(options.recipes) or quality_plan.OWN)
    methods = quality_plan.chosen([*own, *quality_plan.PEERS], names(options.only))
    packages = installed()
    missing |= quality_plan.left_out(methods, packages)
    began, folder = time.time(), (options.cache or home() / "benchmarks") / "quality"
    conditions = conditions_of(options)
    settings = {
        **vars(options),
        "cache": None,
        "json": None,
        "reference": str(folder / f"{reference_name(conditions)}.safetensors"),
    }
    rows = {}
    with Show() as show:
        for place, method in enumerate(method for method in methods if method.name not in missing):
            key = quality_cache.key(method, conditions)
            found = None if options.fresh else quality_cache.read(folder, method, key)
            if found is None:
                say = f"{method.name} ({place + 1} of {len(methods)})"
                try:
                    found = measure(
                        method, settings, lambda text, say=say: show.run(0.0, f"{say}: {text}", say)
                    )
                except RunError as error:
                    if method.own:
                        raise
                    missing[method.name] = str(error)
                    continue
                quality_cache.write(folder, method, key, found)
            rows[method.name] = {"name": method.name, **found}
    kept = [rows[method.name] for method in methods if method.name in rows]
    return {
        "rows": kept,
        "left_out": missing,
        "comparisons": quality_plan.comparisons(kept, methods),
        "own": [method.name for method in methods if method.own],
        "about": {method.name: method.about for method in methods if method.about},
        "conditions": conditions,
        "environment": environment() | {"threads": options.threads, "libraries": packages},
        "started_at": began,
        "seconds": time.time() - began,
    }


def conditions_of(options: argparse.Namespace) -> dict:
    """Return the conditions that all rows share, JSON-ready; texts by name and hash."""
    checkpoint = library.resolve(options.model)
    text, calibration = texts.load_text(options.text), calibration_text(options.calibration)
    return {
        "model": options.model,
        "digest": checkpoint.digest,
        "text": text.name,
        "text_sha256": text.sha256,
        "tokens": options.tokens,
        "window": options.window,
        "calibration": calibration.name,
        "calibration_sha256": calibration.sha256,
        "calibration_tokens": options.calibration_tokens,
        "minutes": options.minutes,
        "threads": options.threads,
        "seed": options.seed,
    }


def reference_name(conditions: dict) -> str:
    """Return the file of the baseline's predictions, named by a hash of its inputs."""
    scored = ("digest", "text_sha256", "tokens", "window", "threads")
    return f"reference-{quality_cache.reference_key({name: conditions[name] for name in scored})}"


def measure(method: quality_plan.Method, settings: dict, say: Callable[[str], None]) -> dict:
    """Return the row of `method`, measured in its own process. Raise `RunError` with the end of its log if it
    fails."""
    request = {**settings, "module": method.module, "item": method.item}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.quality_row", json.dumps(request)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=pipe.environment(settings["threads"]),
        )
        answer = {}
        try:
            for line in child.stdout:
                answer = json.loads(line)
                if "say" in answer:
                    say(answer["say"])
        finally:
            if child.poll() is None and "row" not in answer:
                child.kill()
            child.wait()
            child.stdout.close()
        if "row" in answer:
            return answer["row"]
        log.seek(0)
        tail = "\n".join(f"    {line}" for line in log.read().strip().splitlines()[-15:])
        print(f"The end of the log of {method.name}:\n{tail}", file=sys.stderr, flush=True)
        raise RunError(
            f"{method.name}: {answer.get('error', f'its process ended with status {child.returncode}')}"
        )


def main() -> int:
    """Parse the options, measure, print tables and the JSON line. Return exit status 0, 1 after a failure, 2
    if the benchmark cannot start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=quality_plan.MODEL)
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="text to score, such as WikiText-2's wiki.test.raw; default: the packaged text",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="calibration text, such as WikiText-2's valid.txt; default: the packaged text",
    )
    parser.add_argument("--tokens", type=int, default=quality_plan.TOKENS, help="tokens to score")
    parser.add_argument("--window", type=int, default=quality_plan.WINDOW)
    parser.add_argument("--calibration-tokens", type=int, default=TOKENS)
    parser.add_argument(
        "--minutes", type=float, help="time limit of a learned recipe; default: its fixed number of steps"
    )
    parser.add_argument(
        "--recipes",
        metavar="NAMES",
        help=f"qcore's recipes, comma-separated (default: {','.join(quality_plan.OWN)})",
    )
    parser.add_argument(
        "--only", metavar="NAMES", help="only these rows and fp32: comma-separated names, * for any letters"
    )
    parser.add_argument("--threads", type=int, default=2, help="processor threads of each program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fresh", action="store_true", help="measure everything again, ignoring the rows of earlier runs"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the result to this file; default: a complete run goes to results/",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="folder of measured rows; default: in qcore's cache folder",
    )
    options = parser.parse_args()
    silence()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a row's process is ended as well
    try:
        check(options)
        options.text, options.calibration = absolute(options.text), absolute(options.calibration)
        result = run(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except QcoreError as error:
        print(error, file=sys.stderr)
        return 1
    target = options.json or (
        RESULTS / quality_table.file_name(result) if not options.only and not options.recipes else None
    )
    print(quality_table.text(result))
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps([{name: row[name] for name in LINE} for row in result["rows"]]))
    return 0


def absolute(source: str | None) -> str | None:
    """Return the absolute path of a file, because rows are measured in another folder; names of packaged
    texts are unchanged."""
    return str(Path(source).absolute()) if source and Path(source).is_file() else source


def check(options: argparse.Namespace) -> None:
    """Raise `InputError` for a number out of range."""
    for name, least in (
        ("tokens", 2),
        ("window", 2),
        ("calibration_tokens", 16),
        ("threads", 1),
        ("seed", 0),
    ):
        if getattr(options, name) < least:
            raise InputError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, but it must be at least {least}."
            )
    if options.minutes is not None and not options.minutes > 0:
        raise InputError(f"--minutes is {options.minutes}, but it must be above 0.")


if __name__ == "__main__":
    sys.exit(main())

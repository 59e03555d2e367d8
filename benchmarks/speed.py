"""Speed of qcore beside its alternatives, in one run on one machine, in turns.

    pip install -r benchmarks/requirements.txt        (once; compiles llama.cpp)
    python benchmarks/speed.py [--threads 2] [--rounds N] [--only NAMES] [--json FILE] [--cache FOLDER]
    python benchmarks/speed.py --zoo       (every family of the native step, see zoo.py)

Every program gets the same weights, the same 256-token prompt and the same number of threads, in a process of
its own; `plan.py` defines the turns and the ratios, `peers/` measures each program. The first run prepares
files (some minutes; about 3 GB in the cache folder), later ones start at once. A complete run is saved in
`benchmarks/results/`, and `python benchmarks/table.py` writes the newest result into the README; a part of
one, saved there with --json, goes to docs/benchmarks.md only. The last line is JSON:
{"ratios": {name: value}, "rows": [...]}.
"""

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from benchmarks import pipe, plan, table, zoo, zoo_table  # noqa: E402
from qcore.base.errors import InputError, QcoreError, RunError  # noqa: E402
from qcore.base.home import home  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch",
    "transformers",
    "llama-cpp-python",
    "onnxruntime-genai",
    "onnxruntime",
    "bitsandbytes",
    "torchao",
    "optimum-quanto",
    "gguf",
    "onnx-ir",
)


def installed() -> dict[str, str]:
    """Return the versions of the packages that take part, without importing them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def prepare(stages: list[plan.Stage], cache: Path, threads: int) -> dict:
    """Return the prepared files of everything in `stages`, made in a separate process; see `prepare.py`."""
    items = [
        item
        for stage in stages
        for process in stage.processes
        for item in process.items
        if process.module in ("own", "llamacpp", "ortgenai") or item == plan.INT4
    ]
    if not items:
        return {"files": {}, "prompt": []}
    command = [sys.executable, "-m", "benchmarks.prepare", str(cache), str(threads), *dict.fromkeys(items)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=pipe.environment(threads))
    if done.returncode:
        raise RunError("The files to be measured could not be prepared; see the reason above.")
    return json.loads(done.stdout.splitlines()[-1])


def measure(stage: plan.Stage, prepared: dict, threads: int, rounds: int) -> tuple[plan.Samples, dict]:
    """Start the stage's processes, let them take turns for `rounds` rounds after an uncounted one, and end
    them.

    Return the samples, and {"processes": the description of each, "others": processors that other programs
    kept busy}.
    """
    samples, others = plan.Samples(), []
    with ExitStack() as stack:
        workers = {}
        for process in stage.processes:  # all load at the same time
            options = {"threads": threads, "items": process.items, "name": process.name, **prepared}
            workers[process.name] = stack.enter_context(pipe.Worker(process.name, process.module, options))
        about = {name: worker.ready() for name, worker in workers.items()}
        for number in range(-1, rounds):
            say(f"  {'warm-up' if number < 0 else f'round {number + 1} of {rounds}'}")
            for process, item in plan.turns(stage, number):
                rates, busy = workers[process].measure(item)
                if number >= 0:
                    samples.add(process, item, rates)
                    others.append(busy)
    return samples, {"processes": about, "others": others}


def rows_of(stage: plan.Stage, samples: plan.Samples) -> list[dict]:
    """Return one row per measured rate."""
    return [
        {
            "stage": stage.title,
            "process": process,
            "item": item,
            "figure": name,
            "median": median(rate[name] for rate in rates),
            "best": max(rate[name] for rate in rates),
            "samples": [rate[name] for rate in rates],
        }
        for (process, item), rates in samples.rounds.items()
        for name in rates[0]
    ]


def run(options: argparse.Namespace) -> dict:
    """Measure all requested ratios; return the JSON object of the last line."""
    stages = plan.chosen(_names(options.only))
    packages = installed()
    plan.check_installed(stages, packages)
    began = time.time()
    prepared = prepare(stages, options.cache or home() / "benchmarks", options.threads)
    ratios, comparisons, rows, about, others = {}, [], [], {}, []
    for stage in stages:
        rounds = options.rounds or stage.rounds
        say(f"{stage.title}: {', '.join(process.name for process in stage.processes)}")
        samples, told = measure(stage, prepared, options.threads, rounds)
        rows += rows_of(stage, samples)
        about |= told["processes"]
        others += told["others"]
        for ratio in stage.ratios:
            ratios[ratio.name] = samples.ratio(ratio)
            comparisons.append(
                {
                    "name": ratio.name,
                    "measure": ratio.measure,
                    "ratio": ratios[ratio.name],
                    "bar": ratio.bar,
                    "unit": ratio.ours.unit,
                    "ours": median(samples.of(ratio.ours)),
                    "theirs": median(samples.of(ratio.theirs)),
                    "rounds": rounds,
                }
            )
    order = {name: place for place, name in enumerate(plan.ratio_names())}
    return {
        "ratios": ratios,
        "rows": rows,
        "comparisons": sorted(comparisons, key=lambda each: order[each["name"]]),
        "conditions": {
            "model": plan.MODEL,
            "digest": prepared.get("digest"),
            "prompt_tokens": plan.PROMPT,
            "steps": plan.STEPS,
            "generate_tokens": plan.GENERATED,
            "threads": options.threads,
            "ratio": "median over the rounds of the ratio within a round",
        },
        "environment": environment() | {"threads": options.threads, "libraries": packages},
        "processes": _without_paths(about),
        "others_busy": {"median": median(others), "most": max(others)},
        "started_at": began,
        "seconds": time.time() - began,
    }


def run_zoo(options: argparse.Namespace) -> dict:
    """Measure the families of the native step; print the table and return the result."""
    result = zoo.run(
        only=_names(options.only),
        threads=options.threads,
        rounds=options.rounds,
        python=options.llama_cpp,
        target=options.json,
        say=say,
    )
    print(zoo_table.text(result))
    return result


def _names(only: str | None) -> list[str]:
    return [name.strip() for name in (only or "").split(",") if name.strip()]


def _without_paths(value):
    """Cut absolute paths in `value` to their last part: a result describes the measurement, not the machine's
    folders."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


def say(text: str) -> None:
    """Report progress to the user, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Parse the options, measure, print a table and the JSON line. Return exit status 0, 1 after a failure, 2
    if the benchmark cannot start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="processor threads of each program")
    parser.add_argument(
        "--rounds",
        type=int,
        help="measurements per item; default: 8 for whole steps of the default model, 4 or 5 for the rest",
    )
    parser.add_argument(
        "--only", metavar="NAMES", help="only these ratios: comma-separated names, * for any letters"
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
        help="folder of prepared files; default: in qcore's cache folder",
    )
    parser.add_argument(
        "--zoo",
        action="store_true",
        help="instead, the native step beside the modules for every family that it covers; --only then takes "
        "parts of their names",
    )
    parser.add_argument(
        "--llama-cpp",
        metavar="PYTHON",
        help="with --zoo, the interpreter whose llama-cpp-python takes part; default: this one",
    )
    options = parser.parse_args()
    try:
        if options.threads < 1 or (options.rounds is not None and options.rounds < 1):
            raise InputError("--threads and --rounds must be at least 1.")
        if options.zoo:
            print(json.dumps(run_zoo(options)))
            return 0
        result = run(options)
    except InputError as error:
        say(str(error))
        return 2
    except QcoreError as error:
        say(str(error))
        return 1
    target = options.json or (RESULTS / table.file_name(result) if not options.only else None)
    print(table.text(result))
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

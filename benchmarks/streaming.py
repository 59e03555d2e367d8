"""Streaming of a model larger than memory: speed, memory, and whether a kill changes a byte of the result.

    python benchmarks/streaming.py                  a 7B-shaped Llama in bf16: 13.5 GB, and as much again for
                                                    its results and peers
    python benchmarks/streaming.py --size tiny      some megabytes, as in the tests

Write the checkpoint (`make_checkpoint.py`), then run these steps, each in its own process and with the files
out of the system's cache:

    copy        only read all its bytes and write as many as the quantized model has
    quantize    int4-g64, streamed; at least half as fast as `copy`, below 1.5 GB; loading the libraries is
                timed separately
    kill        the same, ended by SIGKILL at half of the shards, and the same command again: every byte
                is the same
    peer        llama.cpp's own quantizer (Q4_0, from a bfloat16 GGUF), or bitsandbytes if llama-cpp-python
                is not installed
    evaluate    perplexity of fp32 and two recipes over 512 tokens, streamed; below 3 GB

Each figure comes with the number of processors that other programs kept busy. The checkpoint and everything
made from it are deleted at the end; after an interruption, the same command resumes with the next step. The
last line is JSON; a run of the full size is saved in `benchmarks/results/`.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from benchmarks import make_checkpoint  # noqa: E402
from benchmarks.pipe import environment as variables  # noqa: E402
from benchmarks.streaming_steps import Stopwatch, flush  # noqa: E402
from qcore.base.files import read_json, write_json  # noqa: E402
from qcore.base.other_work import busy_seconds  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402

RECIPE, RECIPES = "int4-g64", ("int4-g64", "nf4-g64")
BARS = {"quantize_share_of_copy": 0.5, "quantize_peak_bytes": 1.5e9, "evaluate_peak_bytes": 3e9}
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Size:
    """The checkpoint's shape, the bytes of its shards and of the output's, and the scored tokens and their
    window."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    vocabulary: int
    source_shard: float
    shard: int
    tokens: int
    window: int

    @property
    def config(self) -> dict:
        """Return the checkpoint's config.json."""
        shape = SimpleNamespace(
            layers=self.layers,
            hidden=self.hidden,
            mlp=self.mlp,
            heads=self.heads,
            kv_heads=self.heads,
            vocabulary=self.vocabulary,
        )
        return make_checkpoint.shape(shape)


SIZES = {
    "7b": Size(32, 4096, 11008, 32, 32000, 1e9, 1 << 30, 513, 512),
    "tiny": Size(4, 128, 256, 4, 512, 2e5, 100_000, 65, 32),
}


def step(name: str, threads: int, **options) -> dict:
    """Run a step in a separate process. Return its figures, its peak of resident bytes ("peak_bytes"), total
    seconds ("wall_s"), processors that other programs kept busy ("others_busy"), seconds during which the
    whole process was stopped from outside ("stopped_s", not included in any time) and its exit code, negative
    for a signal ("code")."""
    command = [sys.executable, "-m", "benchmarks.streaming_steps", name, json.dumps(options)]
    before, watch = busy_seconds(), Stopwatch()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=variables(threads))
    said = child.stdout.read().strip().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    wall, busy = watch.seconds, busy_seconds() - before
    child.returncode = os.waitstatus_to_exitcode(status)
    others = max(0.0, (busy - usage.ru_utime - usage.ru_stime) / (wall + watch.stopped))
    figures = json.loads(said[-1]) if said and not child.returncode else {}
    return figures | {
        "code": child.returncode,
        "wall_s": wall,
        "stopped_s": watch.stopped,
        "peak_bytes": 1024 * usage.ru_maxrss,
        "others_busy": others,
    }


def measured(name: str, threads: int, source: Path, **options) -> dict:
    """Run a `step` that must succeed, with the checkpoint out of the cache."""
    say(f"{name} …")
    flush(source.glob("*.safetensors"))
    found = step(name, threads, source=str(source), **options)
    if found["code"]:
        raise RuntimeError(f"{name} ended with {found['code']}")
    say(
        f"{name}: {found['wall_s']:.1f} s, peak {found['peak_bytes'] / 1e9:.2f} GB, others "
        f"kept {found['others_busy']:.1f} processors busy"
    )
    return found


def killed(threads: int, source: Path, target: Path, shards: int, **options) -> dict:
    """Quantize, be killed after half of `shards`, and quantize again. Return both steps, and the shards that
    were not written again."""
    half = max(1, shards // 2)
    say(f"quantize, killed after {half} of {shards} shards …")
    first = step("quantize", threads, source=str(source), target=str(target), die_after=half, **options)
    if first["code"] != -9 or target.exists():
        raise RuntimeError(f"the run to be killed ended with {first['code']}")
    second = measured("quantize", threads, source, target=str(target), **options)
    return {"killed": first, "resumed": second, "shards_kept": shards - second["shards_made"]}


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file."""
    return {
        file.name: hashlib.file_digest(file.open("rb"), "sha256").hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file()
    }


class Kept:
    """The results of steps, in a file of the folder, so that an interrupted benchmark resumes where it
    stopped."""

    def __init__(self, folder: Path):
        self._path = folder / "steps.json"
        self.found = read_json(self._path) or {"began": time.time()}

    def forget(self, name: str) -> None:
        """Forget the step's result."""
        self.found.pop(name, None)

    def __call__(self, name: str, take: Callable[[], object]):
        """Return the result of the step `name`, from `take` unless known."""
        if name not in self.found:
            self.found[name] = take()
            write_json(self._path, self.found)
        return self.found[name]


def run(
    size: Size,
    folder: Path,
    threads: int,
    peer: str | None = None,
    again: Sequence[str] = (),
    only: Sequence[str] = (),
) -> dict | None:
    """Run all steps in `folder`, except those known from an earlier start and not in `again`; see the module.
    `peer` None: whichever is installed. Return None if only the steps of `only` were requested."""
    kept, source, out = Kept(folder), folder / "checkpoint", folder / "out"
    options = {"recipe": RECIPE, "shard_bytes": size.shard}

    def make() -> dict:
        say("making the checkpoint …")
        shutil.rmtree(source, ignore_errors=True)
        return make_checkpoint.make(source, size.config, size.source_shard)

    def quantize() -> dict:
        shutil.rmtree(out, ignore_errors=True)
        found = measured("quantize", threads, source, target=str(out), **options)
        return found | {
            "nbytes": sum(file.stat().st_size for file in out.glob("*.safetensors")),
            "sha256": digests(out),
        }

    def kill() -> dict:
        shutil.rmtree(out, ignore_errors=True)
        found = killed(threads, source, out, kept.found["quantize"]["shards_made"], **options)
        return found | {"sha256": digests(out)}

    takes = {
        "make": make,
        "quantize": quantize,
        "copy": lambda: measured(
            "copy", threads, source, target=str(folder / "copied"), nbytes=kept.found["quantize"]["nbytes"]
        ),
        "kill": kill,
        "peer": lambda: _peer(
            peer or ("llama_cpp" if find_spec("llama_cpp") else "bitsandbytes"), threads, source, folder
        ),
        "evaluate": lambda: measured(
            "evaluate", threads, source, recipes=list(RECIPES), tokens=size.tokens, window=size.window
        ),
    }
    for name, take in takes.items():
        if name in again:
            kept.forget(name)
        if not only or name in only:
            kept(name, take)
    return (
        None
        if only
        else summary({name: kept.found[name] for name in takes}, size, threads, kept.found["began"])
    )


def summary(steps: dict, size: Size, threads: int, began: float) -> dict:
    """Return the saved form of the result, from the results of the steps."""
    about, quantized, copied, resumed = (steps.pop(name) for name in ("make", "quantize", "copy", "kill"))
    same = quantized.pop("sha256") == resumed.pop("sha256")
    figures = {
        "quantize_share_of_copy": (copied["read_s"] + copied["write_s"]) / quantized["quantize_s"],
        "quantize_peak_bytes": max(quantized["peak_bytes"], resumed["resumed"]["peak_bytes"]),
        "evaluate_peak_bytes": steps["evaluate"]["peak_bytes"],
    }
    met = {
        name: figures[name] >= bar if name.endswith("copy") else figures[name] < bar
        for name, bar in BARS.items()
    }
    return {
        "figures": figures,
        "bars": BARS,
        "met": met,
        "same_bytes_after_kill": same,
        "read_rate": about["bytes"] / quantized["quantize_s"],
        "written_bytes": quantized["nbytes"],
        "times_as_fast_as_peer": steps["peer"]["quantize_s"] / quantized["quantize_s"],
        "steps": {"copy": copied, "quantize": quantized, "kill": resumed, **steps},
        "conditions": {
            "size": asdict(size),
            "recipe": RECIPE,
            "threads": threads,
            "bytes": about["bytes"],
            "weights": about["weights"],
            "source_shards": about["shards"],
        },
        "environment": environment(),
        "started_at": began,
        "seconds": time.time() - began,
    }


def _peer(name: str, threads: int, source: Path, folder: Path) -> dict:
    if name == "bitsandbytes":
        return measured(name, threads, source, kind="nf4") | {
            "peer": "bitsandbytes quantize_4bit nf4, blocks of 64, nothing written"
        }
    return measured(name, threads, source, scratch=str(folder), kind="Q4_0", workers=threads) | {
        "peer": "llama.cpp llama_model_quantize Q4_0"
    }


def text(result: dict) -> str:
    """Return the result as text for the user."""
    figures, steps = result["figures"], result["steps"]
    about, same = result["conditions"], "the same" if result["same_bytes_after_kill"] else "OTHER"
    lines = [
        f"{about['weights'] / 1e9:.2f} billion weights, {about['bytes'] / 1e9:.2f} GB: "
        f"quantized to {RECIPE} in "
        f"{steps['quantize']['quantize_s']:.1f} s after "
        f"{steps['quantize']['starting_s']:.1f} s for the libraries ("
        f"{result['read_rate'] / 1e6:.0f} MB/s), {figures['quantize_share_of_copy']:.2f} of the rate "
        f"of reading and writing alone ({steps['copy']['read_s']:.1f} + "
        f"{steps['copy']['write_s']:.1f} s), peak "
        f"{figures['quantize_peak_bytes'] / 1e9:.2f} GB",
        f"killed and resumed: {same} bytes, {steps['kill']['shards_kept']} shards kept",
        f"{steps['peer']['peer']}: {steps['peer']['quantize_s']:.1f} s, peak "
        f"{steps['peer']['peak_bytes'] / 1e9:.2f} GB",
        (
            f"evaluated in {steps['evaluate']['wall_s']:.0f} s, peak "
            f"{figures['evaluate_peak_bytes'] / 1e9:.2f} GB: "
        )
        + ", ".join(f"{row['recipe']} {row['perplexity']:.4g}" for row in steps["evaluate"]["rows"]),
    ]
    return "\n".join(lines + [f"MISSED: {name}" for name, met in result["met"].items() if not met])


def say(phrase: str) -> None:
    """Report progress to the user, apart from the result."""
    print(phrase, file=sys.stderr, flush=True)


def main() -> int:
    """Parse the options, measure, print. Return 0 if all bars are met and the bytes are the same, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, default=Path("streaming-benchmark"), help="for 35 GB, removed at the end"
    )
    parser.add_argument(
        "--again",
        metavar="STEPS",
        help="run these steps again, even if known from an interrupted benchmark: quantize,copy,…",
    )
    parser.add_argument(
        "--only", metavar="STEPS", help="run only these steps, and keep the folder for the rest"
    )
    parser.add_argument(
        "--peer", choices=("llama_cpp", "bitsandbytes"), help="default: whichever is installed"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the result to this file; default: the full size goes to results/",
    )
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    again, only = (tuple(filter(None, (names or "").split(","))) for names in (options.again, options.only))
    result = run(SIZES[options.size], folder, options.threads, options.peer, again, only)
    if result is None:
        return 0
    shutil.rmtree(folder)
    print(text(result))
    if options.json or options.size == "7b":
        day = time.strftime("%Y-%m-%d", time.localtime(result["started_at"]))
        target = options.json or RESULTS / f"streaming-{options.size}-{options.threads}-threads-{day}.json"
        target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if all(result["met"].values()) and result["same_bytes_after_kill"] else 1


if __name__ == "__main__":
    sys.exit(main())

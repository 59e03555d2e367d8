"""Speed of quantizing, beside other libraries, and of loading a saved model.

    python benchmarks/quantizing.py [--threads 2] [--weights 1e9] [--rounds 3] [--quick]
                                    [--model smollm2-135m]

Codes are rounded to nearest in a few matrices of 4096 x 11008 that take turns, so that a billion weights
fit into memory and no cache holds them. The first row really quantizes a billion weights in one go; the other
candidates take turns, one matrix at a time, and their best times are scaled to a billion. A time is
also given as a share of the time to only read the weights, at the bandwidth of the same minute.
The saved model is loaded in separate processes, whose imports are timed separately. The last line is JSON:
{"ratios": {name: value}, "rows": [...], "loading": {...}, "environment": {...}}.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from qcore.kernels.packed import PackedWeight  # noqa: E402
from qcore.measurement.environment import environment, read_bandwidth  # noqa: E402
from qcore.quantization import methods  # noqa: E402
from qcore.recipes import parse  # noqa: E402

SHAPE = (4096, 11008)
MATRICES = 3
OWN = (
    "int4-g64",
    "int4-g32",
    "int4-g128-sym",
    "int4-g64-dq",
    "int8",
    "int8-g64",
    "int3",
    "int2",
    "nf4-g64",
    "fp4-g64",
)
BILLION = 1e9
LOAD = """
import json, sys, time
start = time.perf_counter()
import torch
torch.set_num_threads(int(sys.argv[2]))
import qcore
from qcore.library import safetensors
from qcore.kernels import library
from qcore.library.loading import load_tokenizer
from transformers.models.llama import modeling_llama
library.functions()
marks = [time.perf_counter()]
model = qcore.load(sys.argv[1])
marks.append(time.perf_counter())
with torch.inference_mode():
    model.model(torch.tensor([[1, 2, 3]]))
marks.append(time.perf_counter())
again = time.perf_counter()
with torch.inference_mode():
    model.model(torch.tensor([[1, 2, 3]]))
print(json.dumps({"imports": marks[0] - start, "load": marks[1] - marks[0], "first_step": marks[2] - marks[1],
                  "later_step": time.perf_counter() - again}))
"""


def own(name: str):
    """Return a function that quantizes a matrix to the recipe `name`."""
    recipe = parse(name)
    return lambda weight: methods.quantize(weight, recipe.weights, recipe.method)


def candidates(quick: bool) -> dict:
    """Return all candidates by name: functions of one float32 or bfloat16 matrix."""
    calls = {f"qcore {name}": own(name) for name in (OWN[:1] if quick else OWN)}
    wide = own("int4-g64")
    calls["qcore int4-g64 from bf16"] = lambda weight: wide(weight)
    stored = wide(torch.randn(SHAPE))
    calls["qcore packing int4-g64"] = lambda weight: PackedWeight.pack(stored)
    return calls | peers()


def peers() -> dict:
    """Return other libraries' own functions on the same matrices; libraries that are not installed are
    reported and left out."""
    calls = {}
    try:
        from bitsandbytes.functional import quantize_4bit

        calls["bitsandbytes nf4"] = lambda weight: quantize_4bit(weight, blocksize=64, quant_type="nf4")
    except ImportError:
        print("bitsandbytes is not installed, so it is left out.")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        calls["torchao int8"] = lambda weight: quantize_(_linear(weight), Int8WeightOnlyConfig())
    except ImportError:
        print("torchao is not installed, so it is left out.")
    try:
        from optimum.quanto import freeze, qint4, qint8, quantize

        def quanto(weight: torch.Tensor, kind) -> None:
            holder = torch.nn.Sequential(_linear(weight))
            quantize(holder, weights=kind)
            freeze(holder)

        calls["quanto int4"] = lambda weight: quanto(weight, qint4)
        calls["quanto int8"] = lambda weight: quanto(weight, qint8)
    except ImportError:
        print("optimum-quanto is not installed, so it is left out.")
    return calls


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    with torch.device("meta"):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def a_billion(weights: list[torch.Tensor], count: float) -> float:
    """Return the seconds of int4-g64 for `count` weights, matrix after matrix, discarding results."""
    call, matrices = own("int4-g64"), -(-int(count) // weights[0].numel())
    call(weights[0])
    start = time.perf_counter()
    for i in range(matrices):
        call(weights[i % len(weights)])
    return (time.perf_counter() - start) * count / (matrices * weights[0].numel())


def take_turns(calls: dict, weights: list[torch.Tensor], rounds: int) -> dict[str, list[float]]:
    """Return the seconds for each matrix, with all candidates once per round."""
    narrow = weights[0].to(torch.bfloat16)
    times = {name: [] for name in calls}
    for i in range(rounds):
        for name, call in calls.items():
            weight = narrow if name.endswith("bf16") else weights[i % len(weights)]
            start = time.perf_counter()
            call(weight)
            times[name].append(time.perf_counter() - start)
    return times


def whole_model(name: str, threads: int, rounds: int) -> dict:
    """Return the seconds to quantize the loaded model to int4-g64 and to int8, to save it, and to load the
    saved model."""
    from qcore import library
    from qcore.library import safetensors
    from qcore.quantization import convert

    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in ("int8", "int4-g64"):
            seconds = []
            for _ in range(rounds):
                loaded = library.load(name)
                start = time.perf_counter()
                ledger = convert.quantize(loaded.model, parse(recipe))
                seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            folder = safetensors.save(
                loaded.model, loaded.tokenizer, parse(recipe), ledger, Path(scratch) / recipe
            )
            found[recipe] = {"quantize": min(seconds), "save": time.perf_counter() - start}
            del loaded
            runs = [_load(folder, threads) for _ in range(rounds)]
            found[recipe] |= min(runs, key=lambda run: run["load"] + run["first_step"])
    return found


def _load(folder: Path, threads: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(threads)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse the options, measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--weights", type=float, default=BILLION, help="weights of the first row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="int4-g64 alone beside the other libraries")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        weights = [0.02 * torch.randn(SHAPE) for _ in range(MATRICES)]
        size = weights[0].numel()
        bandwidth = read_bandwidth()
        rows = [
            {
                "what": f"qcore int4-g64, {options.weights:.0e} weights in one go",
                "seconds": a_billion(weights, options.weights),
            }
        ]
        rows[0] |= {
            "seconds_for_1e9": rows[0]["seconds"] * BILLION / options.weights,
            "read_share": 4 * options.weights / bandwidth / rows[0]["seconds"],
        }
        for name, seconds in take_turns(candidates(options.quick), weights, options.rounds).items():
            best = min(seconds)
            nbytes = 2 if name.endswith("bf16") else 4
            share = None if "packing" in name else nbytes * size / bandwidth / best
            rows.append(
                {"what": name, "seconds": best, "seconds_for_1e9": best * BILLION / size, "read_share": share}
            )
    del weights
    for row in rows:
        share = (
            ""
            if row["read_share"] is None
            else f"{row['read_share']:6.1%} of reading at {bandwidth / 1e9:.1f} GB/s"
        )
        print(f"{row['what']:44} {row['seconds_for_1e9']:8.2f} s for a billion weights  {share}")
    loading = whole_model(options.model, options.threads, options.rounds)
    for recipe, times in loading.items():
        print(
            f"{options.model} {recipe}: "
            + ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in times.items())
        )
    by_name = {row["what"]: row["seconds_for_1e9"] for row in rows}
    ratios = {
        "quantize_int4_1e9_seconds": rows[0]["seconds_for_1e9"],
        "load_int4_seconds": loading["int4-g64"]["load"] + loading["int4-g64"]["first_step"],
    }
    pairs = {
        "bitsandbytes nf4": "qcore nf4-g64",
        "torchao int8": "qcore int8",
        "quanto int8": "qcore int8",
        "quanto int4": "qcore int4-g64",
    }
    for peer, ours in pairs.items():
        if peer in by_name and ours in by_name:
            ratios[f"{ours.removeprefix('qcore ')}_vs_{peer}".replace(" ", "_")] = (
                by_name[peer] / by_name[ours]
            )
    print(json.dumps({"ratios": ratios, "rows": rows, "loading": loading, "environment": environment()}))


if __name__ == "__main__":
    main()

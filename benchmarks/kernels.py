"""Speed of the native kernels, against the machine's limit and against the float32 product that they replace.

    python benchmarks/kernels.py [--threads 2] [--rounds 30] [--quick] [--only gemv|gemm]

One token at a time (GEMV) is bound by reading the weights, so each time is also given as a share of the read
bandwidth measured in the same minute. Many tokens at once (GEMM) are bound by arithmetic: 2 · M · N · K
operations; the peers there are MKL on float32 weights and FBGEMM's dynamic int8, which gives activations 7
bits so that its products fit 16. All candidates of a shape take turns, and weights are cycled so that a
single token finds none in a cache. The best time of each counts, because other load on a shared machine only
adds time. The last line is JSON: {"ratios": {name: value}, "rows": [...], "environment": {...}}.
"""

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

from qcore.formats.codebook import Codebook  # noqa: E402
from qcore.formats.uniform import Uniform  # noqa: E402
from qcore.kernels import dispatch  # noqa: E402
from qcore.kernels.packed import PackedWeight  # noqa: E402
from qcore.measurement.environment import environment, readers  # noqa: E402
from qcore.quantization.methods import quantize  # noqa: E402

FORMATS = {
    "int4-g32": (Uniform(4, 32, False), "rtn"),
    "int4-g64": (Uniform(4, 64, False), "rtn"),
    "int8": (Uniform(8, None, True), "rtn"),
    "nf4-g64": (Codebook("nf4", 64), "rtn"),
    "kmeans4": (Codebook("kmeans4", None), "kmeans"),
}
ACTIVATIONS = ("int16", "int8", "int8-block", "fp32")
GEMV = ((576, 1536), (1536, 576), (2048, 8192), (4096, 11008))
GEMM = ((576, 1536), (2048, 8192))
TOKENS = (2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
PEERS = ("MKL fp32", "FBGEMM int8")
SHOWN = ("int4-g64 int8-block", "int4-g64 int16", "int8 int8", "int8 int16", *PEERS)
COLD = 96 << 20  # bytes of weights to cycle through, several times the last-level cache's share
READ = 32 << 20  # bytes per bandwidth measurement, which take about as long as the largest product


def take_turns(candidates: dict, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call, with all candidates once per round."""
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def packed(name: str, columns: int, rows: int, cold: bool) -> list[PackedWeight]:
    """Return a quantized random weight, copied until the copies exceed every cache."""
    format, method = FORMATS[name]
    small = torch.randn(
        min(rows, 256), columns
    )  # k-means on more rows takes minutes, and speed does not depend on values
    weight = PackedWeight.pack(quantize(small.repeat(-(-rows // small.shape[0]), 1)[:rows], format, method))
    copies = -(-COLD // weight.nbytes) if cold else 1
    return [weight] + [PackedWeight.pack(weight.unpack()) for _ in range(copies - 1)]


@functools.lru_cache(maxsize=1)
def all_packed(columns: int, rows: int, cold: bool) -> dict[str, list[PackedWeight]]:
    """Return `packed` for every format. The last shape's weights are cached for all numbers of tokens."""
    return {name: packed(name, columns, rows, cold) for name in FORMATS}


def candidates_of(columns: int, rows: int, tokens: int) -> tuple[dict, dict[str, int]]:
    """Return the calls to time by name ("int4-g32 int16"), and the bytes of weights that each reads."""
    x, calls, sizes = torch.randn(tokens, columns), {}, {}
    for name, each in all_packed(columns, rows, tokens == 1).items():
        weights = itertools.cycle(each)
        for activations in ACTIVATIONS:
            label = f"{name} {activations}"
            calls[label] = lambda weights=weights, activations=activations: dispatch.linear(
                x, next(weights), None, activations
            )
            sizes[label] = next(weights).nbytes
    dense = itertools.cycle(
        [torch.randn(rows, columns) for _ in range(-(-COLD // (4 * rows * columns)) if tokens == 1 else 1)]
    )
    calls["MKL fp32"] = lambda: torch.nn.functional.linear(x, next(dense))
    sizes["MKL fp32"] = 4 * rows * columns
    dynamic = torch.ao.nn.quantized.dynamic.Linear.from_float(_prepared(rows, columns))
    calls["FBGEMM int8"] = lambda: dynamic(x)
    sizes["FBGEMM int8"] = rows * columns
    return calls, sizes


def _prepared(rows: int, columns: int) -> torch.nn.Linear:
    layer = torch.nn.Linear(columns, rows, bias=False)
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return layer


def gemm_table(rows: list[dict]) -> str:
    """Return operations per second by shape and number of tokens, as Markdown, with the ratio to the faster
    peer."""
    lines = [f"| K x N | tokens | {' | '.join(SHOWN)} |", "| --- " * (2 + len(SHOWN)) + "|"] if rows else []
    for columns, outputs, tokens in sorted({(row["K"], row["N"], row["M"]) for row in rows}):
        here = {
            row["kernel"]: row for row in rows if (row["K"], row["N"], row["M"]) == (columns, outputs, tokens)
        }
        cells = [
            f"{here[name]['gops']:.0f}"
            + ("" if name in PEERS else f" ({here[name]['vs_fastest_peer']:.2f}x)")
            for name in SHOWN
        ]
        lines.append(f"| {columns} x {outputs} | {tokens} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the options, measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="only the largest GEMV and two GEMMs")
    parser.add_argument("--only", choices=("gemv", "gemm"), help="one token, or several")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    blocks = itertools.cycle(torch.ones(8, READ // 8, dtype=torch.int64).unbind())
    reads = {f"read by {read.__name__}": (lambda read=read: read(next(blocks))) for read in readers()}
    rows, ratios = [], {}
    shapes = [(*shape, 1) for shape in (GEMV[-1:] if options.quick else GEMV)]
    shapes += [
        (*shape, tokens)
        for shape in (GEMM[:1] if options.quick else GEMM)
        for tokens in ((16, 256) if options.quick else TOKENS)
    ]
    shapes = [
        shape for shape in shapes if options.only is None or (options.only == "gemv") == (shape[2] == 1)
    ]
    with torch.inference_mode():
        for columns, outputs, tokens in shapes:
            calls, sizes = candidates_of(columns, outputs, tokens)
            times = take_turns(calls | reads, options.rounds if tokens < 64 else max(5, options.rounds // 4))
            bandwidth = READ / min(min(times.pop(name)) for name in reads)
            for name, seconds in times.items():
                best = min(seconds)
                row = {
                    "K": columns,
                    "N": outputs,
                    "M": tokens,
                    "kernel": name,
                    "us": round(1e6 * best, 1),
                    "us_median": round(1e6 * statistics.median(seconds), 1),
                    "bandwidth_share": round(sizes[name] / best / bandwidth, 3),
                    "gops": round(2e-9 * tokens * columns * outputs / best, 1),
                    "vs_mkl_fp32": round(min(times["MKL fp32"]) / best, 2),
                    "vs_fastest_peer": round(min(min(times[peer]) for peer in PEERS) / best, 2),
                }
                rows.append(row)
                print(
                    f"{columns:5} x {outputs:5}  M {tokens:4}  {name:20} {row['us']:10.1f} us  "
                    f"{row['bandwidth_share']:6.1%} of "
                    f"{bandwidth / 1e9:.1f} GB/s  {row['gops']:7.1f} GOPS  "
                    f"{row['vs_mkl_fp32']:6.2f} x MKL fp32  "
                    f"{row['vs_fastest_peer']:6.2f} x the faster peer"
                )
            if (columns, outputs, tokens) == (*GEMV[-1], 1):
                share = {
                    row["kernel"]: row["bandwidth_share"]
                    for row in rows
                    if (row["K"], row["M"]) == (columns, 1)
                }
                ratios["gemv_int4_bandwidth_share"] = max(
                    share["int4-g32 int16"], share["int4-g32 int8-block"]
                )
                ratios["gemv_int8_bandwidth_share"] = share["int8 int16"]
                ratios |= {
                    f"gemv_{name.replace(' ', '_')}_bandwidth_share": value for name, value in share.items()
                }
    many = [row for row in rows if row["M"] > 1]
    for name in SHOWN[:4] if many else ():
        ratios[f"gemm_{name.replace(' ', '_')}_vs_fastest_peer_worst"] = min(
            row["vs_fastest_peer"] for row in many if row["kernel"] == name
        )
    print(gemm_table(many))
    print(json.dumps({"ratios": ratios, "rows": rows, "environment": environment()}))


if __name__ == "__main__":
    main()

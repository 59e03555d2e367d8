"""One token times a 4096 x 11008 matrix: bytes of weights read per second, beside the machine's plain read
bandwidth.

A round calls every kernel and the plain read in turn, TURNS times, on weights that no cache holds, and keeps
the best time of each. "int4" and "int8" are int4-g32 and int8 with 16-bit activations, the default of their
recipes; 8-bit and exact ones are measured as well.
"""

import itertools
import time

import torch

from benchmarks.kernels import packed
from qcore.kernels import dispatch
from qcore.measurement.environment import read_buffer, readers

TURNS = 30
FIGURES = {
    "int4": ("int4-g32", "int16"),
    "int8": ("int8", "int16"),
    "int4 8-bit activations": ("int4-g32", "int8-block"),
    "int4 exact activations": ("int4-g32", "fp32"),
    "int8 8-bit activations": ("int8", "int8-block"),
}


def load(options: dict):
    """See the package; an item is "4096x11008"."""
    torch.set_num_threads(options["threads"])
    (item,) = options["items"]
    columns, rows = map(int, item.split("x"))
    x, buffer = torch.randn(1, columns), read_buffer()
    formats = {name: packed(name, columns, rows, cold=True) for name, _ in FIGURES.values()}
    cycles = {name: itertools.cycle(weights) for name, weights in formats.items()}
    calls = {
        figure: (
            lambda cycle=cycles[name], activations=activations: dispatch.linear(
                x, next(cycle), None, activations
            )
        )
        for figure, (name, activations) in FIGURES.items()
    }
    sizes = {figure: formats[name][0].nbytes for figure, (name, _) in FIGURES.items()}
    # a plain read takes about as long as a product, because a longer one would average over other load on the
    # machine
    size = max(sizes.values())
    blocks = itertools.cycle(buffer.split(size // buffer.element_size())[:-1])
    reads = {f"read by {read.__name__}": (lambda read=read: read(next(blocks))) for read in readers()}

    @torch.inference_mode()
    def measure(_: str) -> dict[str, float]:
        best = dict.fromkeys([*calls, *reads], float("inf"))
        for _ in range(TURNS):
            for name, call in (calls | reads).items():
                start = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - start)
        read = min(best.pop(name) for name in reads)
        return {name: sizes[name] / seconds for name, seconds in best.items()} | {"read": size / read}

    return measure, {
        "bytes": sizes,
        "kernels": [f"{name}: {dispatch.explain(formats[name][0], mode)}" for name, mode in FIGURES.values()],
    }

"""One file for each program whose quantized weights `quality.py` compares; all begin with the same loaded
model.

Each has `quantize(job) -> Stored`, which changes `job.loaded.model` in place: either its linear layers
compute with the program's own tensors, or they hold the values that those tensors stand for. `Stored` says
what was stored, counted from the tensors themselves.
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from qcore.base.errors import RunError
from qcore.layers.select import select
from qcore.library import Loaded
from qcore.quantization.calibration import Calibration
from qcore.recipes import parse


@dataclass(frozen=True)
class Job:
    """Quantize `loaded` to `item`. `text` calls `load_calibration` (reading it is on the clock); `say` tells
    the person who waits; `scratch` is an empty folder."""

    loaded: Loaded
    item: str
    threads: int
    scratch: Path
    text: object
    say: object

    def calibration(self) -> Calibration:
        """The windows of calibration text, the same for everybody."""
        return self.text(self.loaded.tokenizer)


@dataclass(frozen=True)
class Stored:
    """`nbytes` hold `weights` weights, those of `layers` (names of parameters); `notes` are sentences for
    people."""

    nbytes: int
    weights: int
    layers: frozenset[str]
    notes: tuple[str, ...] = ()
    details: dict = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """8 · bytes / weights: codes, scales, zero points and tables included."""
        return 8 * self.nbytes / self.weights


def quantizer(module: str):
    """The function `quantize` of `benchmarks/quantizers/<module>.py`."""
    return import_module(f"benchmarks.quantizers.{module}").quantize


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """{name of the weight: layer} of the layers that every row quantizes: those that qcore's recipes take,
    the linears of the blocks."""
    targets = select(model, parse("int4-g64")).targets
    return {target.name: model.get_submodule(target.module) for target in targets}


def check_layers(stored: Stored, expected: frozenset[str]) -> Stored:
    """`stored`, if it covers exactly the `expected` layers. Raises `RunError` otherwise: then sizes and
    losses cannot be compared."""
    for names, what in (
        (expected - stored.layers, "left out"),
        (stored.layers - expected, "quantized as well"),
    ):
        if names:
            raise RunError(
                f"The comparison is over the same layers, but {len(names)} were {what}, such as {min(names)}."
            )
    return stored


def put(layer: torch.nn.Linear, values: torch.Tensor) -> None:
    """Let `layer` compute with other values (N, K). Raises `RunError` if they are not of its shape or not
    finite."""
    if values.shape != layer.weight.shape:
        raise RunError(
            f"A weight came back with the shape {tuple(values.shape)}, not {tuple(layer.weight.shape)}."
        )
    if not torch.isfinite(values).all():
        raise RunError("A weight came back with values that are not finite.")
    layer.weight = torch.nn.Parameter(values.to(layer.weight.dtype).contiguous(), requires_grad=False)

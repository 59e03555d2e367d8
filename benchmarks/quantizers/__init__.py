"""One file per program whose quantized weights `quality.py` compares; all start from the same loaded model.

Each has `quantize(job) -> Stored`, which changes `job.loaded.model` in place: its linear layers either
compute with the program's own tensors or hold the dequantized values. `Stored` is the stored size, counted
from the tensors themselves.
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
    """A request to quantize `loaded` to `item`; with `layers`, only the linear layers of that name. `text`
    calls `load_calibration` (reading it is timed); `say` reports progress; `scratch` is an empty folder."""

    loaded: Loaded
    item: str
    threads: int
    scratch: Path
    text: object
    say: object
    layers: str | None = None

    def calibration(self) -> Calibration:
        """Return the windows of calibration text, the same for every program."""
        return self.text(self.loaded.tokenizer)


@dataclass(frozen=True)
class Stored:
    """The stored size: `nbytes` hold `weights` weights, those of `layers` (names of parameters); `notes` are
    sentences for the reader."""

    nbytes: int
    weights: int
    layers: frozenset[str]
    notes: tuple[str, ...] = ()
    details: dict = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Return 8 · bytes / weights: codes, scales, zero points and tables included."""
        return 8 * self.nbytes / self.weights


def quantizer(module: str):
    """Return the function `quantize` of `benchmarks/quantizers/<module>.py`."""
    return import_module(f"benchmarks.quantizers.{module}").quantize


def linears(model: torch.nn.Module, layers: str | None = None) -> dict[str, torch.nn.Linear]:
    """Return {name of the weight: layer} of the layers that every row quantizes: the targets of qcore's
    recipes, the linear layers of the blocks; with `layers`, those of that name, such as "down_proj"."""
    targets = select(model, parse("int4-g64")).targets
    return {
        target.name: model.get_submodule(target.module)
        for target in targets
        if layers is None or target.module.endswith(f".{layers}")
    }


def check_layers(stored: Stored, expected: frozenset[str]) -> Stored:
    """Return `stored` if it covers exactly the `expected` layers. Raise `RunError` otherwise: sizes and
    losses would not be comparable."""
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
    """Set the weight of `layer` to other values (N, K). Raise `RunError` if they have another shape or are
    not finite."""
    if values.shape != layer.weight.shape:
        raise RunError(
            f"A weight came back with the shape {tuple(values.shape)}, not {tuple(layer.weight.shape)}."
        )
    if not torch.isfinite(values).all():
        raise RunError("A weight came back with values that are not finite.")
    layer.weight = torch.nn.Parameter(values.to(layer.weight.dtype).contiguous(), requires_grad=False)

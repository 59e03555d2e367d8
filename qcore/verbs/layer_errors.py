"""What a recipe does to each layer, without loading the model: error per layer, and a weight's histogram
before and after.

Tensors are read from the checkpoint's files one at a time, quantized, compared and dropped, so the peak is
one layer (one expert of a mixture of experts). For a weight W and what its codes stand for, Ŵ:

    relative error = ‖Ŵ − W‖ / ‖W‖ (Frobenius)          SNR = −20 · log10(relative error) dB

Both say nothing about how much the model's output minds; they show which layers a format fits badly. About 6
dB are one bit.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.registry import unknown
from qcore.formats.budget import Budget
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.inventory import inventory
from qcore.layers.select import Selection, Target, select
from qcore.library.loading import require_finite
from qcore.models import Checkpoint, meta_model
from qcore.models.mapping import read_tensor
from qcore.quantization import methods
from qcore.recipes import Engine, Recipe, parse
from qcore.recipes.engines import variant

LARGEST_BINS = 2000


@dataclass(frozen=True)
class LayerError:
    """`shape` is the stored one. `relative_error`: ‖Ŵ − W‖ / ‖W‖. `snr_db`: decibels, infinite for a lossless
    layer. `format`: the format's label, such as "int4-g64". A mixture's experts are one layer, measured
    together."""

    name: str
    shape: tuple[int, ...]
    relative_error: float
    snr_db: float
    bits_per_weight: float
    format: str


@dataclass(frozen=True)
class Histogram:
    """How many weights lie in each of the bins between `edges` (one more than bins), `before` and `after`.
    `grid` holds the values that the codes of one group, the one whose scale is the median, can stand for:
    ascending, at most 256."""

    name: str
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    grid: tuple[float, ...]


@dataclass(frozen=True)
class _Layer:
    """A layer of the model and where its matrices are stored: one tensor, or one for each expert."""

    target: Target
    name: str
    stored: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


def errors(checkpoint: Checkpoint, recipe: Recipe, progress: Progress | None = None) -> list[LayerError]:
    """The error of every layer that `recipe` quantizes, in the model's order.

    Raises `InputError` for a recipe that has no codes of qcore's own, a checkpoint that is quantized already,
    a skip pattern that matches nothing, or weights that are NaN or infinite.
    """
    layers, _ = _layers(checkpoint, recipe)
    results = []
    for done, layer in enumerate(layers):
        if progress is not None:
            progress(done, len(layers), layer.name)
        results.append(_measure(checkpoint, layer))
    if progress is not None:
        progress(len(layers), len(layers), "")
    return results


def names(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """The names of the layers that `recipe` quantizes, as `histogram` takes them. Raises `InputError` as
    `errors` does."""
    return [layer.name for layer in _layers(checkpoint, recipe)[0]]


def weight(checkpoint: Checkpoint, tensor_name: str) -> torch.Tensor:
    """One layer's weight as float32 (N outputs, K inputs); of a mixture of experts the first expert's. Raises
    `InputError` as `errors` does, and for a layer that does not exist."""
    layers, _ = _layers(checkpoint, parse("int8"))
    layer = next((layer for layer in layers if layer.name == tensor_name), None)
    if layer is None:
        raise unknown("layer", tensor_name, [layer.name for layer in layers])
    tensor = _read(checkpoint, layer.stored[0])
    matrix = tensor[0] if tensor.ndim == 3 else tensor
    return (matrix.T if layer.transposed else matrix).float().contiguous()


def histogram(checkpoint: Checkpoint, tensor_name: str, recipe: Recipe, bins: int = 200) -> Histogram:
    """The distribution of one layer's weights before and after `recipe`, over `bins` equal bins that hold
    both.

    Raises `InputError` as `errors` does, and for a tensor that does not exist or that the recipe keeps.
    """
    if not isinstance(bins, int) or not 1 <= bins <= LARGEST_BINS:
        raise InputError(f"bins is {bins!r}, but it must be a whole number from 1 to {LARGEST_BINS}.")
    layers, selection = _layers(checkpoint, recipe)
    layer = next((layer for layer in layers if layer.name == tensor_name), None)
    if layer is None and tensor_name in selection.kept:
        raise InputError(f"{tensor_name} is not changed by {recipe.name}. {selection.kept[tensor_name]}")
    if layer is None:
        raise unknown("layer", tensor_name, [layer.name for layer in layers])
    single = (
        None if layer.target.fused else list(_matrices(checkpoint, layer))
    )  # experts are gone through twice
    ranges = [
        (*weight.aminmax(), *quantized.dequantize().aminmax())
        for weight, quantized in single or _matrices(checkpoint, layer)
    ]
    low, high = min(min(limits).item() for limits in ranges), max(max(limits).item() for limits in ranges)
    if low == high:
        low, high = low - 0.5, high + 0.5
    before, after = torch.zeros(2, bins, dtype=torch.int64).unbind(0)
    for weight, quantized in single or _matrices(checkpoint, layer):
        before += torch.histc(weight, bins, low, high).long()
        after += torch.histc(quantized.dequantize(), bins, low, high).long()
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    return Histogram(
        layer.name, tuple(edges.tolist()), tuple(before.tolist()), tuple(after.tolist()), grid(quantized)
    )


def grid(quantized: QuantizedTensor) -> tuple[float, ...]:
    """The values, ascending, that the codes of the group with the median scale can stand for (a per-channel
    table: the middle row)."""
    scales = quantized.scales()
    if scales is None:
        return tuple(quantized.group_values(len(quantized.codebook) // 2, 0).tolist())
    place = int(scales.flatten().argsort()[scales.numel() // 2])
    return tuple(quantized.group_values(*divmod(place, scales.shape[1])).tolist())


# -- which layers, and where they are stored -----------------------------------------------------------------


def _layers(checkpoint: Checkpoint, recipe: Recipe) -> tuple[list[_Layer], Selection]:
    _check(checkpoint, recipe)
    model = meta_model(checkpoint)
    selection = select(model, recipe)
    shared = {name for name, _, twin in inventory(model) if twin}
    prefix = model.base_model_prefix
    layers: list[_Layer] = []
    split_modules = set()
    for target in selection.targets:
        if target.name in shared:
            continue
        stored = _stored_name(target.name, checkpoint, prefix)
        if stored is not None:
            shape = checkpoint.tensors[stored].shape
            layers.append(_Layer(target, target.name, (stored,), shape, target.transposed))
        elif target.fused:
            layers += [] if target.module in split_modules else _split_experts(checkpoint, target)
            split_modules.add(target.module)
        else:
            raise InputError(
                f"{checkpoint.name} stores {target.name} in another arrangement, which the view of layers cannot read."
            )
    return layers, selection


def _check(checkpoint: Checkpoint, recipe: Recipe) -> None:
    if checkpoint.is_quantized:
        raise InputError(
            f"{checkpoint.name} is quantized already. Choose the original model to see what a recipe does to it."
        )
    engine = recipe.weights if isinstance(recipe.weights, Engine) else None
    nearest = engine and variant(engine.backend, engine.variant).nearest
    if not recipe.quantizes or (engine is not None and nearest is None):
        raise InputError(
            f"{recipe.name} keeps floating point, so there are no codes to look at. Choose a recipe such as int8 or int4-g64."
        )
    if engine is not None:
        raise InputError(
            f"{recipe.name} is another library's format, which is applied to a whole model and cannot be looked at layer by layer. "
            f"The nearest of qcore's own recipes is {nearest}."
        )
    if isinstance(recipe.weights, Budget):
        raise InputError(
            f"{recipe.name} chooses each layer's format by how much the model minds, which is another view: the page Sensitivity, or "
            "`python -m qcore sensitivity`."
        )


def _stored_name(name: str, checkpoint: Checkpoint, prefix: str) -> str | None:
    """Checkpoints of a bare model lack the prefix that its language model adds ("transformer." of GPT-2)."""
    choices = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((choice for choice in choices if choice in checkpoint.tensors), None)


def _split_experts(checkpoint: Checkpoint, target: Target) -> list[_Layer]:
    """Experts of one block that the files keep apart and the model fuses: matrices that differ only in the
    expert's number are one layer, named with `*` in its place, as in
    "model.layers.0.mlp.experts.*.up_proj.weight"."""
    block = re.search(r"[^.]+\.\d+\.", target.module)
    together: dict[str, list[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        found = re.fullmatch(r"(.+\.experts)\.\d+\.(.+)", name)
        if found and len(tensor.shape) == 2 and block and f".{block[0]}" in f".{name}":
            together.setdefault(f"{found[1]}.*.{found[2]}", []).append(name)
    if not together:
        raise InputError(
            f"{checkpoint.name} stores {target.name} in another arrangement, which the view of layers cannot read."
        )
    layers = []
    for name in sorted(together, key=_natural):
        members = tuple(sorted(together[name], key=_natural))
        layers.append(
            _Layer(
                target, name, members, (len(members), *checkpoint.tensors[members[0]].shape), transposed=False
            )
        )
    return layers


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


# -- reading and measuring -----------------------------------------------------------------------------------


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """The tensor called `name` in the files, mapped. Raises `InputError` if it cannot be read, or is NaN or
    infinite somewhere."""
    tensor = read_tensor(checkpoint, name)
    require_finite(name, tensor)
    return tensor


def _matrices(checkpoint: Checkpoint, layer: _Layer) -> Iterator[tuple[torch.Tensor, QuantizedTensor]]:
    """Each matrix of the layer as float32 (N, K) with its quantized form."""
    for name in layer.stored:
        tensor = _read(checkpoint, name)
        for matrix in tensor.unbind(0) if tensor.ndim == 3 else (tensor,):
            weight = (matrix.T if layer.transposed else matrix).float().contiguous()
            try:
                yield weight, methods.quantize(weight, layer.target.format, layer.target.method)
            except InputError as error:
                raise InputError(f"{layer.name}: {error}") from error


def _measure(checkpoint: Checkpoint, layer: _Layer) -> LayerError:
    signal = noise = 0.0
    nbytes = weights = 0
    for weight, quantized in _matrices(checkpoint, layer):
        signal += torch.linalg.vector_norm(weight).item() ** 2
        noise += torch.linalg.vector_norm(quantized.dequantize().sub_(weight)).item() ** 2
        nbytes += quantized.nbytes
        weights += weight.numel()
    relative = math.sqrt(noise / signal) if signal else (math.inf if noise else 0.0)
    snr = (
        -20 * math.log10(relative) if 0 < relative < math.inf else (math.inf if relative == 0 else -math.inf)
    )
    return LayerError(layer.name, layer.shape, relative, snr, 8 * nbytes / weights, layer.target.format.label)

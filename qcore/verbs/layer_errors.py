"""The error of each layer under a recipe, and the histogram of a weight before and after, without loading the
model.

Layers have the names and shapes of the model (the experts of a mixture are one layer), whatever the file
layout. Tensors are read one at a time, quantized, compared and dropped, so the peak memory is one layer (one
expert of a mixture of experts). For a weight W and its dequantized form Ŵ:

    relative error = ‖Ŵ − W‖ / ‖W‖ (Frobenius)          SNR = −20 · log10(relative error) dB

Neither figure measures the effect on the model's output; they show for which layers a format is a poor fit.
One bit is worth about 6 dB.
"""

import math
from collections.abc import Iterator

import torch

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.registry import unknown
from qcore.formats.budget import Budget
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.inventory import inventory
from qcore.layers.select import Selection, Target, select
from qcore.models import Checkpoint
from qcore.quantization import methods
from qcore.recipes import Engine, Recipe, parse
from qcore.recipes.engines import variant
from qcore.streaming.source import Source
from qcore.verbs.layer_types import Histogram, LayerError

LARGEST_BINS = 2000


def errors(checkpoint: Checkpoint, recipe: Recipe, progress: Progress | None = None) -> list[LayerError]:
    """Return the error of every layer that `recipe` quantizes, in the model's order.

    Raise `InputError` for a recipe without codes of qcore's own, a quantized checkpoint, a skip pattern
    without a match, or weights that are NaN or infinite.
    """
    source = _open(checkpoint, recipe)
    layers, _ = _targets(source, recipe)
    results = []
    for done, layer in enumerate(layers):
        if progress is not None:
            progress(done, len(layers), layer.name)
        results.append(_measure(source, layer))
    if progress is not None:
        progress(len(layers), len(layers), "")
    return results


def names(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """Return the names of the layers that `recipe` quantizes, as `histogram` accepts them. Raise `InputError`
    as `errors` does."""
    return [layer.name for layer in _targets(_open(checkpoint, recipe), recipe)[0]]


def weight(checkpoint: Checkpoint, tensor_name: str) -> torch.Tensor:
    """Return one layer's weight as float32 (N outputs, K inputs); for a mixture of experts the first
    expert's. Raise `InputError` as `errors` does, and for an unknown layer."""
    source = _open(checkpoint, parse("int8"))
    layers, _ = _targets(source, parse("int8"))
    layer = next((layer for layer in layers if layer.name == tensor_name), None)
    if layer is None:
        raise unknown("layer", tensor_name, [layer.name for layer in layers])
    return _original(source, layer, 0 if layer.fused else None)


def histogram(checkpoint: Checkpoint, tensor_name: str, recipe: Recipe, bins: int = 200) -> Histogram:
    """Return the distribution of one layer's weights before and after `recipe`, over `bins` equal bins that
    cover both.

    Raise `InputError` as `errors` does, and for a tensor that does not exist or that the recipe keeps.
    """
    if not isinstance(bins, int) or not 1 <= bins <= LARGEST_BINS:
        raise InputError(f"bins is {bins!r}, but it must be a whole number from 1 to {LARGEST_BINS}.")
    source = _open(checkpoint, recipe)
    layers, selection = _targets(source, recipe)
    layer = next((layer for layer in layers if layer.name == tensor_name), None)
    if layer is None and tensor_name in selection.kept:
        raise InputError(f"{tensor_name} is not changed by {recipe.name}. {selection.kept[tensor_name]}")
    if layer is None:
        raise unknown("layer", tensor_name, [layer.name for layer in layers])
    single = None if layer.fused else list(_matrices(source, layer))  # two passes over the experts
    ranges = [
        (*weight.aminmax(), *quantized.dequantize().aminmax())
        for weight, quantized in single or _matrices(source, layer)
    ]
    low, high = min(min(limits).item() for limits in ranges), max(max(limits).item() for limits in ranges)
    if low == high:
        low, high = low - 0.5, high + 0.5
    before, after = torch.zeros(2, bins, dtype=torch.int64).unbind(0)
    for weight, quantized in single or _matrices(source, layer):
        before += torch.histc(weight, bins, low, high).long()
        after += torch.histc(quantized.dequantize(), bins, low, high).long()
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    return Histogram(
        layer.name, tuple(edges.tolist()), tuple(before.tolist()), tuple(after.tolist()), grid(quantized)
    )


def grid(quantized: QuantizedTensor) -> tuple[float, ...]:
    """Return the values, ascending, that the codes of the group with the median scale can represent (for a
    per-channel table: the middle row)."""
    scales = quantized.scales()
    if scales is None:
        return tuple(quantized.group_values(len(quantized.table) // 2, 0).tolist())
    place = int(scales.flatten().argsort()[scales.numel() // 2])
    return tuple(quantized.group_values(*divmod(place, scales.shape[1])).tolist())


# -- which layers --------------------------------------------------------------------------------------------


def _targets(source: Source, recipe: Recipe) -> tuple[list[Target], Selection]:
    """Return the layers that `recipe` quantizes, each once, and the whole selection."""
    selection = select(source.model, recipe)
    shared = {name for name, _, twin in inventory(source.model) if twin}
    return [target for target in selection.targets if target.name not in shared], selection


def _open(checkpoint: Checkpoint, recipe: Recipe) -> Source:
    _check(checkpoint, recipe)
    return Source(checkpoint)


def _check(checkpoint: Checkpoint, recipe: Recipe) -> None:
    if checkpoint.is_quantized:
        raise InputError(
            f"{checkpoint.name} is quantized already. Choose the original model to see a recipe's errors."
        )
    engine = recipe.weights if isinstance(recipe.weights, Engine) else None
    nearest = engine and variant(engine.backend, engine.variant).nearest
    if not recipe.quantizes or (engine is not None and nearest is None):
        raise InputError(
            f"{recipe.name} keeps floating point, so it has no codes to show. "
            "Choose a recipe such as int8 or int4-g64."
        )
    if engine is not None:
        raise InputError(
            f"{recipe.name} is another library's format, which quantizes whole models, not single layers. "
            f"The nearest recipe of qcore is {nearest}."
        )
    if isinstance(recipe.weights, Budget):
        raise InputError(
            f"{recipe.name} chooses a format per layer by sensitivity, so it has no errors per layer. "
            "Compute the sensitivities of the model instead."
        )


# -- reading and measuring -----------------------------------------------------------------------------------


def _original(source: Source, target: Target, expert: int | None) -> torch.Tensor:
    """Return a matrix of the layer as float32 (N, K). Raise `InputError` if it cannot be read, or contains
    NaN or infinite values."""
    source.check_finite(target.name, expert)
    stored = source.read(target.name) if expert is None else source.expert(target.name, expert)
    return (stored.T if target.transposed else stored).float().contiguous()


def _matrices(source: Source, target: Target) -> Iterator[tuple[torch.Tensor, QuantizedTensor]]:
    """Yield each matrix of the layer as float32 (N, K) with its quantized form."""
    for expert in range(target.shape(source.model)[0]) if target.fused else (None,):
        weight = _original(source, target, expert)
        try:
            yield weight, methods.quantize(weight, target.format, target.method)
        except InputError as error:
            raise InputError(f"{target.name}: {error}") from error
    source.forget()


def _measure(source: Source, target: Target) -> LayerError:
    signal = noise = 0.0
    nbytes = weights = 0
    for weight, quantized in _matrices(source, target):
        signal += torch.linalg.vector_norm(weight).item() ** 2
        noise += torch.linalg.vector_norm(quantized.dequantize().sub_(weight)).item() ** 2
        nbytes += quantized.nbytes
        weights += weight.numel()
    relative = math.sqrt(noise / signal) if signal else (math.inf if noise else 0.0)
    snr = (
        -20 * math.log10(relative) if 0 < relative < math.inf else (math.inf if relative == 0 else -math.inf)
    )
    shape = tuple(source.model.get_parameter(target.name).shape)
    return LayerError(target.name, shape, relative, snr, 8 * nbytes / weights, target.format.label)

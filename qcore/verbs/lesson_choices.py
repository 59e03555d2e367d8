"""The effect of one choice on a weight: group size, range of the grid, one outlier, 8-bit activations."""

import torch

from qcore.formats.tensor import QuantizedTensor, round_scale
from qcore.formats.uniform import Uniform
from qcore.kernels import reference
from qcore.quantization.methods import quantize
from qcore.quantization.methods.rtn import grouped
from qcore.verbs.lesson_types import Activations, Clipped, Outlier, Rounded
from qcore.verbs.lesson_weights import describe, relative_error, rounded

SIZES = (8, 16, 32, 64, 128, 256, None)


_TINY = torch.finfo(torch.float32).tiny


def group_sizes(weight: torch.Tensor, bits: int, symmetric: bool = False) -> dict[int | None, Rounded]:
    """Quantize the weight (N, K) to `bits` bits with each group size in `SIZES` that fits a row (None: a
    whole channel)."""
    fitting = [size for size in SIZES if size is None or size <= weight.shape[1]]
    return {size: rounded(weight, Uniform(bits, size, symmetric)) for size in fitting}


def clipped(weight: torch.Tensor, format: Uniform, share: float, place: int | None = None) -> Clipped:
    """Round the weight (N, K) to symmetric grids that cover `share` of each group's largest magnitude; 1 is
    plain rounding to nearest."""
    groups = grouped(weight, format.group_size)
    top = format.levels // 2 - 1
    scale = round_scale(share * groups.abs().amax(dim=2) / top, format)
    units = groups / scale.clamp_min(_TINY).unsqueeze(2)
    codes = (
        (units.round() + format.levels // 2)
        .clamp(1, format.levels - 1)
        .to(torch.uint8)
        .flatten(1)[:, : weight.shape[1]]
    )
    stored = QuantizedTensor.from_codes(format, codes, scale)
    error = (stored.dequantize() - weight).square()
    beyond = (units.abs() > top + 0.5).flatten(1)[:, : weight.shape[1]]
    whole = float(weight.square().sum())
    found = describe(weight, stored, place)
    return Clipped(
        share,
        found.relative_error,
        float((error[beyond].sum() / whole).sqrt()),
        float((error[~beyond].sum() / whole).sqrt()),
        float(beyond.float().mean()),
        found.group,
    )


def outlier(weight: torch.Tensor, format: Uniform, factor: float, place: int) -> Outlier:
    """Quantize group number `place` of the weight (N, K), with its largest weight set to `factor` times its
    value."""
    size = weight.shape[1] if format.group_size is None else format.group_size
    each = -(-weight.shape[1] // size)
    row, start = place // each, place % each * size
    group = weight[row : row + 1, start : start + size].clone()
    largest = int(group.abs().argmax())
    group[0, largest] *= factor
    stored = quantize(group, format, "rtn")
    found, others = describe(group, stored, 0), torch.arange(group.shape[1]) != largest
    values = stored.dequantize()[0, others]
    return Outlier(
        factor, relative_error(group[0, others], values), float((values == 0).float().mean()), found.group
    )


def activations(
    weight: torch.Tensor, format: Uniform, factor: float, tokens: int = 64, seed: int = 0
) -> Activations:
    """Pass `tokens` random inputs (normal, unit variance; the first channel `factor` times as large) through
    the weight (N, K)."""
    x = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    x[:, 0] *= factor
    stored = quantize(weight, format, "rtn")
    wanted = x @ weight.T
    together = reference.quantize_tokens(x.flatten()).view_as(x)
    return Activations(
        factor,
        relative_error(wanted, reference.linear(x, stored, None)),
        relative_error(wanted, reference.linear(x, stored, None, "int8")),
        relative_error(wanted, reference.linear(together, stored, None)),
    )

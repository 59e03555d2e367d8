"""Random quantized weights whose codes, scales and zero points are drawn, not chosen by a method: every value
of a format occurs."""

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor


def drawn(format: Format, shape: tuple[int, int], *, lowest_zero: int = 0, seed: int = 0) -> QuantizedTensor:
    """Return a weight of `shape` (N, K) in a `format` without a learned table."""
    generator = torch.Generator().manual_seed(seed)
    groups = (shape[0], format.groups(shape[1]))
    codes = torch.randint(format.lowest, format.levels, shape, generator=generator, dtype=torch.uint8)
    scale = torch.rand(groups, generator=generator) * 0.05 + 1e-3
    if format.signed:
        scale *= 1 - 2 * torch.randint(0, 2, groups, generator=generator)
    zero = None
    minimum = None
    if format.affine:
        minimum = torch.randn(groups, generator=generator).half().float()
    elif not format.symmetric:
        zero = torch.randint(lowest_zero, format.levels, groups, generator=generator, dtype=torch.uint8)
        zero[0, 0] = lowest_zero
    if format.double_quant:
        from qcore.formats.tensor import round_scale

        scale = round_scale(scale, format)
    return QuantizedTensor.from_codes(format, codes, scale, zero, format.fixed, minimum)


def same(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    """Whether format, shape and all stored parts are equal."""
    return (
        one.format == other.format
        and one.shape == other.shape
        and one.parts().keys() == other.parts().keys()
        and all(torch.equal(part, other.parts()[name]) for name, part in one.parts().items())
    )

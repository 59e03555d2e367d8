"""Random quantized weights of every format, and the largest error that a kernel may make with them, derived
from the bit widths."""

import torch

from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.k_quants import KQuant
from qcore.formats.kinds import Format, group_count
from qcore.formats.packing import pack
from qcore.formats.signed import Signed
from qcore.formats.super_blocks import SUPER_BLOCK
from qcore.formats.tensor import QuantizedTensor, round_scale, spread
from qcore.formats.uniform import Uniform
from qcore.kernels.dispatch import MODES
from qcore.kernels.library import FLOAT, INT8_TOKEN, INT16

FORMATS: dict[str, Format] = {
    "int8": Uniform(8, None, True),
    "int8-asym": Uniform(8, None, False),
    "int8-g64": Uniform(8, 64, True),
    "int8-g32-asym": Uniform(8, 32, False),
    "int4": Uniform(4, None, True),
    "int4-g32": Uniform(4, 32, False),
    "int4-g64": Uniform(4, 64, False),
    "int4-g128-sym": Uniform(4, 128, True),
    "int4-g96": Uniform(4, 96, False),
    "int4-g64-dq": Uniform(4, 64, False, double_quant=True),
    "int3-g64": Uniform(3, 64, False),
    "int3-g32-sym": Uniform(3, 32, True),
    "int2-g64": Uniform(2, 64, False),
    "int6-g64": Uniform(6, 64, False),
    "int5": Uniform(5, None, True),
    "nf4-g64": Codebook("nf4", 64),
    "nf4": Codebook("nf4", None),
    "fp4-g32": Codebook("fp4", 32),
    "nf4-g64-dq": Codebook("nf4", 64, double_quant=True),
    "kmeans4-g64": Codebook("kmeans4", 64),
    "kmeans4": Codebook("kmeans4", None),
    "int5-g32-asym": Uniform(5, 32, False),
    "int7-g64": Uniform(7, 64, False),
    "gguf-q4_0": Signed(4),
    "gguf-q5_0": Signed(5),
    "iq4nl-g32": Codebook("iq4nl", 32),
    "gguf-q4_1": Affine(4, 32),
    "gguf-q5_1": Affine(5, 32),
    **{
        f"affine{bits}-g{size}": Affine(bits, size)
        for bits, size in ((2, 128), (3, 64), (4, 96), (6, 32), (8, 64))
    },
    **{f"gguf-q{bits}_k": KQuant(bits) for bits in range(2, 7)},
}
ENOUGH = {
    k: v
    for k, v in FORMATS.items()
    if k
    in (
        *("int8", "int8-g32-asym", "int4-g32", "int4-g128-sym", "int3-g64", "int2-g64", "nf4-g64", "kmeans4"),
        *("gguf-q5_0", "gguf-q4_1", "affine4-g96", "gguf-q2_k", "gguf-q4_k", "gguf-q5_k", "gguf-q6_k"),
    )
}


def weight(format: Format, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    """Return a weight (rows, columns) with random codes, zero points, minimums and tables, and with scales
    over two decades. Rows of K-quants are filled up to whole super-blocks."""
    generator = torch.Generator().manual_seed(seed)
    columns = whole(format, columns)
    codes = torch.randint(0, 1 << format.bits, (rows, columns), generator=generator, dtype=torch.uint8)
    if isinstance(format, KQuant):
        return _k_quant(format, codes, generator)
    groups = group_count(columns, format.group_size)
    scale = _scales(format, rows, groups, generator)
    if format.affine:
        minimum = scale * torch.randn(rows, groups, generator=generator) * (1 << format.bits)
        return QuantizedTensor.from_codes(format, codes, scale, minimum=minimum)
    if format.even:
        zero = (
            torch.randint(0, 1 << format.bits, (rows, groups), generator=generator, dtype=torch.uint8)
            if format.has_zero_points
            else None
        )
        return QuantizedTensor.from_codes(format, codes, round_scale(scale, format), zero)
    if format.fixed is not None:
        return QuantizedTensor.from_codes(format, codes, round_scale(scale, format), codebook=format.fixed)
    table = torch.randn((16,) if format.group_size else (rows, 16), generator=generator).half()
    return QuantizedTensor.from_codes(
        format, codes, round_scale(scale, format) if format.group_size else None, codebook=table
    )


def whole(format: Format, columns: int) -> int:
    """Return `columns`, or the next number of them that the format can store."""
    return -(-columns // SUPER_BLOCK) * SUPER_BLOCK if isinstance(format, KQuant) else columns


def _scales(format: Format, rows: int, groups: int, generator: torch.Generator) -> torch.Tensor:
    scale = 10 ** (-2 * torch.rand(rows, groups, generator=generator))
    if format.signed:
        scale *= torch.randint(0, 2, scale.shape, generator=generator) * 2 - 1
    return scale


def _k_quant(format: KQuant, codes: torch.Tensor, generator: torch.Generator) -> QuantizedTensor:
    """Return a weight with every scale and minimum that the format can store."""
    rows, columns = codes.shape
    shape = (rows, format.groups(columns))
    top = 1 << format.scale_bits

    def integers(offset: int) -> torch.Tensor:
        return torch.randint(-offset, top - offset, shape, generator=generator, dtype=torch.int16)

    units = [_scales(format, rows, columns // SUPER_BLOCK, generator).half() / top for _ in range(2)]
    return QuantizedTensor(
        format,
        (rows, columns),
        pack(codes, format.bits),
        scale=units[0],
        scale_codes=format.pack_scales(integers(format.scale_offset)),
        minimum=units[1] if format.affine else None,
        min_codes=format.pack_minimums(integers(0)) if format.affine else None,
    )


def allowed_error(x: torch.Tensor, weight: QuantizedTensor, activations: str) -> torch.Tensor:
    """Return the largest error (M, N) of the outputs for x (M, K).

    Quantized activations are off by at most half a step of their block, integer tables by half a step of the
    table, and float32 sums by a few units in the last place of their largest terms (code times scale times
    x).
    """
    x, mode, (rows, columns) = x.double(), MODES[activations], weight.shape
    dense, group_size, format = weight.dequantize().double(), weight.format.group_size, weight.format
    scale = None if weight.scales() is None else weight.scales().double().abs()
    table_step = torch.zeros(rows, 1)
    if format.even:
        size = scale * (1 << format.bits)
        if format.affine:
            size = size + weight.minimums().double().abs()
        size = spread(size, columns, group_size).expand(rows, columns)
    else:
        table = weight.codebook.double().abs().amax(-1, keepdim=True).expand(rows, 1)
        size = (table if scale is None else spread(table * scale, columns, group_size)).expand(rows, columns)
        table_step = size / 4095
    error = 2e-6 * x.abs() @ size.T
    if mode == FLOAT:
        return error
    if mode == INT8_TOKEN:
        most = x.abs().amax(1, keepdim=True).expand_as(x)
    else:
        most = (
            torch.nn.functional.pad(x.abs(), (0, -columns % 32))
            .unflatten(1, (-1, 32))
            .amax(2)
            .repeat_interleave(32, 1)[:, :columns]
        )
    limit = (16383 if isinstance(weight.format, Codebook) else 32767) if mode == INT16 else 127
    return (
        error
        + 0.501 / limit * most @ dense.abs().T
        + 0.501 * (x.abs() + most / limit) @ table_step.expand(rows, columns).double().T
    )

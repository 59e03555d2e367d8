"""Weights in ggml's types, the tensors of a GGUF file: the bytes of each type from a `QuantizedTensor`, and
back.

Nothing is quantized again: every code and every scale is kept, so both sides dequantize to the same numbers.
A format that a type cannot hold is refused, with the property that stands in the way and the recipe that
fits.

    format                                      type
    gguf-q4_0 gguf-q4_1 gguf-q5_0 gguf-q5_1     Q4_0 Q4_1 Q5_0 Q5_1
    gguf-iq4_nl gguf-iq4_xs                     IQ4_NL IQ4_XS
    gguf-q2_k … gguf-q6_k                       Q2_K … Q6_K
    gguf-q8_0 int8 int8-g64 …                   Q8_0: scales repeated for each 32 inputs
    int4-g32-sym int4-g64-sym …                 Q4_0, in the same way

The byte layouts are in `ggml_blocks.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from qcore.base.errors import InputError
from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.iq4_xs import Iq4Xs
from qcore.formats.k_quants import KQuant
from qcore.formats.kinds import Format
from qcore.formats.packing import pack
from qcore.formats.signed import Signed
from qcore.formats.super_blocks import SuperBlocks
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.interop.ggml_blocks import BLOCK, LAYOUTS, Fields

NUMBERS = {  # ggml's numbers of the types, as files store them
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "BF16": 30,
}
NAMES = {number: name for name, number in NUMBERS.items()}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FORMATS: dict[str, Format] = {
    "Q4_0": Signed(4),
    "Q4_1": Affine(4, BLOCK),
    "Q5_0": Signed(5),
    "Q5_1": Affine(5, BLOCK),
    "Q8_0": Uniform(8, BLOCK, True),
    "IQ4_NL": Codebook("iq4nl", BLOCK),
    **{f"Q{bits}_K": KQuant(bits) for bits in (2, 3, 4, 5, 6)},
    "IQ4_XS": Iq4Xs(),
}
"""The format that a type's weights are read into."""
_TYPES = {format: name for name, format in FORMATS.items()}
_NEAREST = {2: "gguf-q2_k", 3: "gguf-q3_k", 4: "gguf-q4_1", 5: "gguf-q5_1", 6: "gguf-q6_k"}


def type_of(format: Format, columns: int) -> str:
    """Return the name of the type that holds weights in `format` with `columns` inputs. Raise `InputError` if
    none does."""
    if reason := reason_against(format, (1, columns)):
        raise InputError(reason)
    return _TYPES[_in_blocks(format)]


def row_bytes(name: str, columns: int) -> int:
    """Return the bytes of a row of `columns` weights of a type. Raise `InputError` unless a row consists of
    whole blocks."""
    if name in FLOATS:
        return columns * FLOATS[name].itemsize
    layout = LAYOUTS[name]
    if columns % layout.inputs:
        raise InputError(
            f"{name} stores blocks of {layout.inputs} inputs, but this weight has {columns} inputs."
        )
    return columns // layout.inputs * layout.bytes


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return None if a type holds weights of `shape` (N, K) in `format` exactly; otherwise the property that
    no type has, and the nearest recipe that fits."""
    columns, bits = shape[1], format.bits
    if isinstance(format, Codebook) and format.kind != "iq4nl":
        what = "a learned table" if format.learned else f"the table of {format.kind}"
        return f"{format.label} stores codes of {what}, which GGUF has no type for. Use gguf-iq4_nl."
    if isinstance(format, Uniform) and not format.symmetric:
        return (
            f"{format.label} stores integer zero points, which GGUF has no type for. Use "
            f"{_NEAREST.get(bits, 'gguf-q8_0')}."
        )
    if not isinstance(format, Uniform | Signed | Affine | Codebook | SuperBlocks):
        return f"GGUF has no type for the format {format.label}. Use gguf-q4_k."
    if _in_blocks(format) not in _TYPES:
        return (
            f"GGUF has no type with {bits}-bit codes and one scale{' and minimum' * format.affine} per "
            f"group. Use {_NEAREST.get(bits, 'gguf-q8_0')}."
        )
    if format.group_size is not None and not isinstance(format, SuperBlocks) and format.group_size % BLOCK:
        return (
            f"{format.label} has a scale per {format.group_size} inputs, but a block of GGUF has one per "
            f"{BLOCK}. Use {_in_blocks(format).label}."
        )
    inputs = LAYOUTS[_TYPES[_in_blocks(format)]].inputs
    if columns % inputs:
        instead = format.for_columns(columns)
        other = f"Use {instead.label}." if instead != format else "Keep this layer in floating point (skip)."
        return (
            f"GGUF stores {format.label} in blocks of {inputs} inputs, but this weight has {columns}. {other}"
        )
    return None


def encode(weight: QuantizedTensor) -> torch.Tensor:
    """Return the bytes, uint8 (N, row_bytes), of `weight` (N, K) in the type `type_of` its format. Raise
    `InputError` if no type holds it."""
    format, columns = weight.format, weight.shape[1]
    layout = LAYOUTS[type_of(format, columns)]
    parts, codes = weight.parts(), weight.unpacked_codes()
    if not isinstance(format, SuperBlocks):
        scale, minimum = weight.scales(), weight.minimums()
        if scale is None:
            raise ValueError(f"{format.label} has no scales")
        minimum = None if minimum is None else _per_block(minimum, weight)
        return layout.write(Fields(codes, _per_block(scale, weight), minimum))
    if weight.scale is None:
        raise ValueError(f"a weight in {format.label} without scales")
    scales = format.scale_integers(parts).to(torch.int8 if format.signed else torch.uint8)
    minimums = (
        format.minimum_integers(parts).to(torch.uint8)
        if isinstance(format, KQuant) and format.affine
        else None
    )
    return layout.write(Fields(codes, weight.scale, weight.minimum, scales, minimums))


def decode(data: torch.Tensor, name: str, shape: tuple[int, int]) -> QuantizedTensor:
    """Return the weight of `shape` (N, K) that the bytes `data` of the type called `name` hold, with its own
    codes and scales. Raise `InputError` for a number of bytes that does not fit, or a scale that is not
    finite."""
    rows, columns = shape
    data, width = data.contiguous().view(torch.uint8), row_bytes(name, columns)
    if data.numel() != rows * width:
        raise InputError(
            f"A weight of {rows} x {columns} takes {rows * width:,} bytes in {name}, but there are "
            f"{data.numel():,}."
        )
    fields, format = LAYOUTS[name].read(data.view(rows, width)), FORMATS[name]
    for part in (fields.scale, fields.minimum):
        if part is not None and not part.isfinite().all():
            row = int((~part.isfinite()).any(1).nonzero()[0])
            raise InputError(
                f"The scales of row {row} of this {name} weight are not finite, so it is damaged."
            )
    found = QuantizedTensor(
        format,
        (rows, columns),
        pack(fields.codes, format.bits),
        scale=fields.scale,
        minimum=fields.minimum,
        codebook=format.fixed,
    )
    if isinstance(format, SuperBlocks) and fields.scale_codes is not None:
        found = replace(found, scale_codes=format.pack_scales(fields.scale_codes.to(torch.int16)))
    if isinstance(format, KQuant) and fields.min_codes is not None:
        found = replace(found, min_codes=format.pack_minimums(fields.min_codes))
    return found


def encode_float(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Return the bytes of `weight` in the floating-point type called `name`, uint8 with the last dimension in
    bytes. Raise `InputError` for values that the type cannot hold."""
    stored = weight.to(FLOATS[name]).contiguous()
    if (stored.isinf() & weight.isfinite()).any():
        raise InputError(
            f"This tensor holds {weight.abs().max():.3g}, which {name} cannot store. Use BF16 or F32."
        )
    return stored.view(torch.uint8)


def decode_float(data: torch.Tensor, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor of `shape` in its own dtype from the bytes `data` of a floating-point type."""
    return data.contiguous().view(torch.uint8).flatten().view(FLOATS[name]).view(shape)


def _in_blocks(format: Format) -> Format:
    """Return the format of the type that would hold weights in `format`, with its scales repeated per block;
    the type need not exist."""
    if isinstance(format, Uniform) and format.symmetric and format.bits != 8:
        return Signed(format.bits)
    if isinstance(format, Uniform):
        return Uniform(format.bits, BLOCK, format.symmetric)
    if isinstance(format, Codebook):
        return Codebook(format.kind, BLOCK)
    return replace(format, group_size=BLOCK) if isinstance(format, Signed | Affine) else format


def _per_block(values: torch.Tensor, weight: QuantizedTensor) -> torch.Tensor:
    """Repeat values per group (N, G), float32, for each block of 32 inputs: (N, K / 32), float16."""
    blocks, size = weight.shape[1] // BLOCK, weight.format.group_size
    return (
        values.expand(-1, blocks) if size is None else values.repeat_interleave(size // BLOCK, 1)[:, :blocks]
    ).half()

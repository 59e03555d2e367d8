"""Sparse storage: one bit per weight marks zeros, and only the other weights are stored.

    mask      uint8 (N, ceil(K / 8))     bit k mod 8 of byte k // 8: 1 if the weight is stored
    values    the stored weights, row after row: floats unchanged, codes of b bits packed (packing.py)

With b bits per weight and a share s of zeros this takes 1 + b · (1 − s) bits per weight instead of b, so it
is smaller if

    s > 1 / b      3.1 % for fp32, 6.25 % for 16 bits, 12.5 % for 8, 25 % for 4, 33.3 % for 3

Scales and zero points are stored as usual. Reading restores the same bits.
"""

import torch

from qcore.base.errors import InputError
from qcore.formats.packing import pack, packed_width, unpack
from qcore.formats.tensor import QuantizedTensor, spread


def break_even(bits: int) -> float:
    """Return the share of zeros above which sparse storage of weights of `bits` bits is smaller."""
    return 1 / bits


def sparse_bytes(rows: int, columns: int, kept: int, bits: int) -> int:
    """Return the bytes of a matrix (rows, columns) of which `kept` weights of `bits` bits are stored."""
    return rows * packed_width(columns, 1) + (packed_width(kept, bits) if bits <= 8 else kept * bits // 8)


def compress(values: torch.Tensor, kept: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mask, values) of `values` (N, K), floats or, with `bits` up to 8, uint8 codes; `kept` (N, K)
    says which are stored."""
    chosen = values[kept]
    return pack(kept.to(torch.uint8), 1), pack(chosen, bits) if values.dtype == torch.uint8 else chosen


def expand(
    mask: torch.Tensor, values: torch.Tensor, columns: int, bits: int, empty: torch.Tensor
) -> torch.Tensor:
    """Invert `compress`: return (N, columns), with `empty`, which broadcasts to that shape, where no weight
    is stored. Raise `InputError` if the number of values is not the number of bits set in the mask."""
    kept = unpack(mask, 1, columns).bool()
    count = int(kept.sum())
    packed = values.dtype == torch.uint8
    if len(values) != (packed_width(count, bits) if packed else count):
        raise InputError(
            f"A sparse matrix has {count} weights in its mask, but another number of values. Save the model "
            "again."
        )
    chosen = unpack(values, bits, count) if packed else values
    full = empty.to(chosen.dtype).expand(kept.shape).clone()
    full[kept] = chosen
    return full


def zero_codes(tensor: QuantizedTensor) -> torch.Tensor | None:
    """Return the code of 0, uint8 (N, K) or broadcasting to it; None if the format has no exact 0."""
    if tensor.format.affine:
        return None
    if tensor.format.even:
        zero = tensor.zero_points()
        full = (
            spread(zero, tensor.shape[1], tensor.format.group_size)
            if isinstance(zero, torch.Tensor)
            else torch.tensor([[zero]])
        )
        return full.to(torch.uint8)
    fixed = tensor.format.fixed
    if fixed is None or not bool(fixed.eq(0).any()):
        return None
    return fixed.eq(0).nonzero()[0].to(torch.uint8)[None]

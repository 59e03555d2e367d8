"""MXFP4, read only: gpt-oss's experts in 4-bit floats with a power of two per 32 inputs. Source: OCP
Microscaling Formats, version 1.0.

For the E experts of a weight of N outputs and K inputs:

    …_blocks   uint8    (E, N, K / 32, 16)    two codes per byte, the first in the low bits
    …_scales   uint8    (E, N, K / 32)        exponent e; w = value(code) · 2^(e − 127)

The values of the codes, 0, ±0.5, ±1, ±1.5, ±2, ±3, ±4 and ±6, are a table with a scale per group of 32. Such
a weight keeps its codes in a format with a stored table, as long as its powers of two are float16 numbers.
"""

from __future__ import annotations

import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.packing import pack
from qcore.formats.tensor import QuantizedTensor

SUFFIXES = ("blocks", "scales")
GROUP, BIAS = 32, 127
NAN = 255  # the exponent that stands for "not a number"
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
FORMAT = Codebook("kmeans4", GROUP)
_LOWEST, _HIGHEST = -24, 15  # powers of two that float16 holds


def decode(blocks: torch.Tensor, scales: torch.Tensor) -> QuantizedTensor:
    """Return one matrix with the stored codes, from `blocks` (N, K / 32, 16) and `scales` (N, K / 32). Raise
    `InputError` for parts that contradict each other, for an exponent that stands for "not a number", and for
    scales outside of float16, which `dequantize` reads."""
    codes, exponents = _read(blocks, scales)
    used = exponents[(codes.view(*exponents.shape, GROUP) & 7).bool().any(-1)]  # other groups are zeros
    if used.numel() and (int(used.min()) < _LOWEST or int(used.max()) > _HIGHEST):
        raise InputError(
            f"Its scales reach from 2^{int(used.min())} to 2^{int(used.max())}, which float16 does not hold."
        )
    scale = torch.ldexp(
        torch.ones_like(exponents, dtype=torch.float32), exponents.clamp(_LOWEST, _HIGHEST)
    ).to(torch.float16)
    return QuantizedTensor(
        FORMAT, (codes.shape[0], codes.shape[1]), pack(codes, 4), scale=scale, codebook=_table(torch.float16)
    )


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return one matrix, float32 (N, K). Raise `InputError` as `decode`, apart from the scales."""
    codes, exponents = _read(blocks, scales)
    values = _table(torch.float32)[codes.int()].view(*exponents.shape, GROUP)
    return torch.ldexp(values, exponents.unsqueeze(-1)).flatten(1)


def _table(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(VALUES, dtype=dtype)


def _read(blocks: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes, uint8 (N, K), and the exponents, int32 (N, K / 32)."""
    if blocks.ndim != 3 or blocks.shape[-1] != GROUP // 2 or blocks.shape[:-1] != scales.shape:
        raise InputError(
            f"Blocks of the shape {tuple(blocks.shape)} have scales of {tuple(scales.shape)}: the file is "
            "damaged."
        )
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise InputError(f"Blocks in {blocks.dtype} with scales in {scales.dtype} are not MXFP4.")
    if (scales == NAN).any():
        raise InputError("A scale stands for 'not a number': the file is damaged.")
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(1)
    return codes, scales.to(torch.int32) - BIAS

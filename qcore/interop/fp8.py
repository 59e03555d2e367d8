"""Weights in 8-bit floating point, read only: with a scale per block (DeepSeek, Qwen), with one per row or
matrix (FBGEMM, ModelOpt), and as `float-quantized` of compressed-tensors.

For a weight of N outputs and K inputs:

    weight             float8_e4m3fn (or e5m2)  (N, K)
    weight_scale_inv   float    (ceil(N / 128), ceil(K / 128))    w = weight · scale, in spite of its name
    weight_scale       float    (), (1,), (N, 1), (N, G) or (blocks of rows, blocks of columns)

A format of qcore has at most 8 bits per code on an even grid or 16 values in a table, so such weights have no
codes here: they are dequantized to fp32, without loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qcore.base.errors import InputError

SUFFIXES = ("weight", "weight_scale_inv", "weight_scale")
DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
REASON = "Dequantized to fp32: no format of qcore holds 8-bit floats."


def dequantize(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    """Return the weight, float32 (N, K). `config` may state the size of its blocks as `weight_block_size`
    (rows, columns). Raise `InputError` for parts that contradict each other or the config."""
    weight = parts.get("weight")
    scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
    if weight is None or weight.dtype not in DTYPES or weight.ndim != 2:
        raise InputError("A weight in 8-bit floats is missing or has another form: the file is damaged.")
    if scale is None or not scale.is_floating_point():
        raise InputError(
            "A weight in 8-bit floats has no scale (weight_scale or weight_scale_inv), so its values are "
            "unknown. Download the model again."
        )
    if not torch.isfinite(scale.float()).all():
        raise InputError("A weight in 8-bit floats has a scale that is not finite: the file is damaged.")
    values = weight.to(torch.float32)
    if scale.numel() == 1:
        return values.mul_(float(scale))
    rows, columns = weight.shape
    down, across = _block(weight.shape, scale, config)
    spread = scale.float()
    spread = spread if across == columns else spread.repeat_interleave(across, dim=1)[:, :columns]
    for start in range(0, rows, down):  # block by block, so that no second matrix is made
        values[start : start + down] *= spread[start // down]
    return values


def _block(shape: torch.Size, scale: torch.Tensor, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows and columns that share a scale."""
    rows, columns = shape
    if scale.ndim == 1 and scale.shape[0] == rows:
        return 1, columns
    stated = config.get("weight_block_size") or config.get("block_structure")
    if scale.ndim != 2 or 0 in scale.shape:
        raise InputError(f"A weight of {rows} x {columns} has scales of the shape {tuple(scale.shape)}.")
    if stated is None:
        down, across = -(-rows // scale.shape[0]), -(-columns // scale.shape[1])
    elif isinstance(stated, list) and len(stated) == 2 and all(type(n) is int and n > 0 for n in stated):
        down, across = stated
    else:
        raise InputError(
            f"The config states blocks of {stated!r}, which is not a number of rows and columns."
        )
    if (-(-rows // down), -(-columns // across)) != tuple(scale.shape):
        raise InputError(
            f"A weight of {rows} x {columns} in blocks of {down} x {across} has {-(-rows // down)} x "
            f"{-(-columns // across)} scales, but {tuple(scale.shape)} are stored: the file is damaged."
        )
    return down, across

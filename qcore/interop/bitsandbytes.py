"""bitsandbytes' stored weights (read by transformers and vLLM): LLM.int8 rows, and nf4 and fp4 blocks.

8 bits, N outputs and K inputs:

    weight         int8     (N, K)      w = weight · SCB / 127
    SCB            float32  (N,)        the largest magnitude of a row
    weight_format  uint8    ()          0: row after row

4 bits, in blocks of consecutive weights of the flattened matrix, one scale per block:

    weight                                uint8    (N · K / 2, 1)   the first of two codes in the high bits
    weight.absmax                         float32  (blocks,)
    weight.quant_map                      float32  (16,)            the table
    weight.quant_state.bitsandbytes__nf4  uint8    (characters,)    JSON: block size, shape, dtype

With its double quantization, `absmax` is uint8: absmax = nested_quant_map[code] · nested_absmax[block of 256]
+ nested_offset. qcore's `-dq` has a lowest scale per block of 256 in place of the one offset, so these scales
are stored as float32 numbers, which holds them exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcore.base.errors import InputError
from qcore.formats.codebook import FIXED, Codebook
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.interop.grid import need, stored_scale

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
INT8 = Uniform(8, None, symmetric=True)
SUFFIXES = ("weight", "SCB", "weight_format")
_STATE = "weight.quant_state.bitsandbytes__"
_LONGEST_STATE = 4096  # bytes


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return why bitsandbytes cannot hold a weight of `format` and `shape` (N, K), with the nearest recipe,
    or None."""
    if format == INT8:
        return None
    if not isinstance(format, Codebook) or format.kind not in FIXED:
        near = "int8" if format.bits > 4 else "nf4-g64"
        return (
            "bitsandbytes stores int8 with a scale per row, and the tables nf4 and fp4, but not "
            f"{format.label}. The nearest recipe is {near}."
        )
    size = format.group_size
    if size is None or size not in BLOCKS:
        block = min(BLOCKS, key=lambda each: abs(each - (size or 64)))
        return (
            f"bitsandbytes has blocks of {', '.join(map(str, BLOCKS))} weights, not "
            f"{'one per row' if size is None else size}. The nearest recipe is {format.kind}-g{block}."
        )
    if shape[1] % size:
        fits = max((each for each in BLOCKS if each <= size and shape[1] % each == 0), default=None)
        advice = (
            f"The nearest recipe is {format.kind}-g{fits}." if fits else "Leave the module out with --skip."
        )
        return (
            f"bitsandbytes lets blocks run across rows, so groups must divide the inputs, but {shape[1]} "
            f"inputs are no multiple of {size}. {advice}"
        )
    return None


def encode(weight: QuantizedTensor, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Return the parts of `weight`; bitsandbytes dequantizes 4-bit weights to `dtype`."""
    codes, scale = weight.unpacked_codes(), weight.scales()
    assert scale is not None
    if weight.format == INT8:
        return {
            "weight": (codes.to(torch.int16) - 128).to(torch.int8),
            "SCB": (scale * 127).flatten(),
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }
    assert isinstance(weight.format, Codebook) and weight.format.group_size is not None
    flat = codes.flatten()
    state = {
        "quant_type": weight.format.kind,
        "blocksize": weight.format.group_size,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    packed = (flat[0::2] << 4) | flat[1::2]
    return {
        "weight": packed.unsqueeze(1),
        "weight.absmax": scale.flatten(),
        "weight.quant_map": weight.table.clone(),
        _STATE + weight.format.kind: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def decode(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> QuantizedTensor:
    """Return the weight with the stored codes; scales are rounded to float16 (a relative change of at most
    2^-11). Everything is in `parts`: `config` is not needed.

    Raise `InputError` for parts that contradict each other, a table that is not nf4's or fp4's, and blocks
    that run across rows: `dequantize` reads these."""
    if "SCB" in parts:
        codes, scale = _int8(parts)
        return QuantizedTensor.from_codes(
            _eight(codes), codes, stored_scale(scale, "A bitsandbytes weight"), _middle(codes)
        )
    kind, size, (rows, columns), codes, table, scale = _four(parts)
    if columns % size:
        raise InputError(
            f"Blocks of {size} weights run across rows of {columns} inputs, which no format of qcore stores. "
            "The weight can only be dequantized."
        )
    format = Codebook(kind, size)
    if not torch.allclose(table, torch.tensor(FIXED[kind]), atol=1e-6):
        raise InputError(f"The stored table is not that of {kind}. The weight can only be dequantized.")
    return QuantizedTensor.from_codes(
        format,
        codes.view(rows, columns),
        stored_scale(scale.view(rows, -1), "A bitsandbytes weight"),
        codebook=format.fixed,
    )


def dequantize(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Return the weight, float32 (N, K). Raise `InputError` for parts that contradict each other."""
    if "SCB" in parts:
        codes, scale = _int8(parts)
        return (codes.float() - 128) * scale
    _, size, shape, codes, table, scale = _four(parts)
    values = table[codes.int()] * scale.repeat_interleave(size)[: codes.numel()]
    return values.view(shape)


def config(format: Format, *, kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config of a model in `format`; `kept` are the linear layers left in floating
    point."""
    eight = format == INT8
    return {
        "quant_method": "bitsandbytes",
        "_load_in_8bit": eight,
        "_load_in_4bit": not eight,
        "load_in_8bit": eight,
        "load_in_4bit": not eight,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": list(kept) or None,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_quant_type": "fp4" if eight else getattr(format, "kind", "nf4"),
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    }


def _int8(parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (N, K) with 128 added and scales (N, 1)."""
    signed, largest = need(parts, "weight", 2), parts["SCB"].flatten()
    if signed.dtype != torch.int8 or largest.numel() != signed.shape[0]:
        raise InputError(
            f"An int8 weight is stored as {signed.dtype} {tuple(signed.shape)} with {largest.numel()} "
            "scales: the file is damaged."
        )
    if (layout := parts.get("weight_format")) is not None and int(layout.flatten()[0]) != 0:
        raise InputError(
            "An int8 weight is stored in a layout for one kind of GPU. Save it again with bitsandbytes 0.45 "
            "or later."
        )
    return (signed.to(torch.int16) + 128).to(torch.uint8), largest.float().unsqueeze(1) / 127


def _eight(codes: torch.Tensor) -> Uniform:
    return INT8 if bool((codes != 0).all()) else Uniform(8, None, symmetric=False)


def _middle(codes: torch.Tensor) -> torch.Tensor | None:
    rows = codes.shape[0]
    return None if _eight(codes).symmetric else torch.full((rows, 1), 128, dtype=torch.uint8)


def _four(
    parts: Mapping[str, torch.Tensor],
) -> tuple[str, int, tuple[int, int], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (kind, block size, (N, K), flat codes, table, scales per block), all checked."""
    keys = [key for key in parts if key.startswith(_STATE)]
    if len(keys) != 1:
        raise InputError(
            "A 4-bit weight has no quant_state, so its shape is unknown: the file is incomplete."
        )
    kind = keys[0].removeprefix(_STATE)
    if kind not in FIXED:
        raise InputError(f"The 4-bit type {kind!r} of bitsandbytes is unknown; qcore reads nf4 and fp4.")
    state = _state(parts[keys[0]])
    size, shape = state.get("blocksize"), state.get("shape")
    if not (
        isinstance(size, int)
        and size in BLOCKS
        and isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(side, int) and 0 < side < 1 << 31 for side in shape)
    ):
        raise InputError(f"A quant_state has the block size {size!r} and the shape {shape!r}: it is damaged.")
    rows, columns = shape
    packed = parts.get("weight")
    if packed is None:
        raise InputError("A quantized weight lacks its part 'weight': the file is incomplete.")
    packed = packed.contiguous().view(torch.uint8).flatten()  # it may be stored as bfloat16 to please FSDP
    if packed.numel() != -(-rows * columns // 2):
        raise InputError(
            f"A weight of shape {shape} in 4 bits has {-(-rows * columns // 2)} bytes, but {packed.numel()} "
            "are stored: the file is damaged."
        )
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten()[: rows * columns]
    table = parts.get("weight.quant_map", torch.tensor(FIXED[kind])).float().flatten()
    scale = _absmax(parts, state)
    if table.numel() != 16 or scale.numel() != -(-rows * columns // size):
        raise InputError(
            f"A weight of shape {shape} has {table.numel()} table entries and {scale.numel()} scales: the "
            "file is damaged."
        )
    return kind, size, (rows, columns), codes, table, scale


def _state(stored: torch.Tensor) -> dict[str, Any]:
    """Return the JSON in `stored`. Raise `InputError` if it is none."""
    if stored.dtype != torch.uint8 or stored.numel() > _LONGEST_STATE:
        raise InputError("A quant_state is not a short text: the file is damaged.")
    try:
        state = json.loads(bytes(stored.flatten().tolist()))
    except ValueError as error:
        raise InputError(f"A quant_state is not JSON: {error}.") from error
    if not isinstance(state, dict):
        raise InputError("A quant_state is not a JSON object: the file is damaged.")
    return state


def _absmax(parts: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> torch.Tensor:
    """Return the scales of a 4-bit weight, float32 (blocks,), double quantization undone."""
    stored = parts.get("weight.absmax")
    if stored is None:
        raise InputError("A quantized weight lacks its part 'weight.absmax': the file is incomplete.")
    if "weight.nested_absmax" not in parts:
        return stored.float().flatten()
    table, outer = parts.get("weight.nested_quant_map"), parts["weight.nested_absmax"].float().flatten()
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if (
        table is None
        or table.numel() != 256
        or stored.dtype != torch.uint8
        or not isinstance(block, int)
        or block < 1
        or not isinstance(offset, int | float)
        or outer.numel() != -(-stored.numel() // block)
    ):
        raise InputError("The double quantization of a weight is incomplete: the file is damaged.")
    codes = stored.flatten()
    return table.float().flatten()[codes.int()] * outer.repeat_interleave(block)[: codes.numel()] + offset

"""AWQ's file format in the version "gemm" (AutoAWQ; read by vLLM, SGLang, and transformers with gptqmodel).

For a weight of N outputs and K inputs in G groups, 4-bit codes:

    qweight  int32    (K, N / 8)     eight outputs of one input in a word
    qzeros   int32    (G, N / 8)     zero points as they are
    scales   float16  (G, N)

The eight outputs of a word lie in the order 0 2 4 6 1 3 5 7 from the lowest bits, which its first GPU kernel
unpacked two at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.interop.grid import Grid, group_size_of, need, pack_words, reason_against_uniform, unpack_words

BITS = (4,)
GROUPS = (16, 32, 64, 128)
SUFFIXES = ("qweight", "qzeros", "scales")
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds output _ORDER[i]
_PLACE = tuple(sorted(range(8), key=_ORDER.__getitem__))  # output j lies in nibble _PLACE[j]


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return why AWQ's format cannot hold a weight of `format` and `shape` (N, K), with the nearest recipe,
    or None."""
    if reason := reason_against_uniform(format, shape, target="AWQ", bits=BITS):
        return reason
    if shape[0] % 8:
        return (
            f"AWQ packs 8 outputs together, but the weight has {shape[0]}. Leave the module out with --skip."
        )
    if format.group_size is not None and format.group_size not in GROUPS:
        near = min(GROUPS, key=lambda size: abs(size - (format.group_size or 0)))
        near_label = Uniform(4, near, format.symmetric).label
        return (
            f"AWQ's readers accept groups of {', '.join(map(str, GROUPS))} inputs, not {format.group_size}. "
            f"The nearest recipe is {near_label}."
        )
    return None


def encode(weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the parts of `weight`."""
    grid = Grid.from_weight(weight)
    return {
        "qweight": _pack(grid.codes.T),
        "qzeros": _pack(grid.zero.T.to(torch.uint8)),
        "scales": grid.scale.T.to(torch.float16).contiguous(),
    }


def read(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Grid:
    """Return the grid in `parts`, with the settings of the folder's quantization_config. Raise `InputError`
    for another version or number of bits, and for parts that contradict each other."""
    named = str(config.get("version", config.get("format", "gemm"))).lower()
    if named != "gemm":
        raise InputError(f"The AWQ version {named!r} is not supported; qcore reads gemm.")
    if (bits := config.get("bits", config.get("w_bit", 4))) != 4:
        raise InputError(f"The config states {bits!r} bits, but qcore reads AWQ weights of 4.")
    words, scales = need(parts, "qweight", 2), need(parts, "scales", 2)
    (columns, _), (groups, rows) = words.shape, scales.shape
    codes = _unpack(words, rows).T.contiguous()
    if "qzeros" in parts:
        zero = _unpack(need(parts, "qzeros", 2), rows).T.to(torch.int16)
    else:
        zero = torch.full((rows, groups), 8, dtype=torch.int16)
    if zero.shape[1] != groups:
        raise InputError(f"qzeros has {zero.shape[1]} groups and scales have {groups}: the file is damaged.")
    size = group_size_of(columns, groups, config.get("group_size", config.get("q_group_size", -1)))
    return Grid(4, size, codes, scales.T.contiguous(), zero.contiguous())


def decode(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> QuantizedTensor:
    """Return the weight with the stored codes. Raise `InputError` as `read` and `Grid.to_weight` do."""
    return read(parts, config).to_weight("An AWQ weight")


def dequantize(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    """Return the weight, float32 (N, K)."""
    return read(parts, config).dequantize()


def config(format: Format, *, kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config of a model in `format`; `kept` are the linear layers left in floating
    point."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "format": "gemm",
        "bits": 4,
        "group_size": format.group_size or -1,
        "zero_point": True,
        "sym": False,
        "desc_act": False,
        "modules_to_not_convert": list(kept),
    }


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """Return uint8 (rows, N) as int32 (rows, N / 8) in AWQ's order."""
    return pack_words(codes.unflatten(-1, (-1, 8))[..., list(_ORDER)].flatten(-2), 4)


def _unpack(words: torch.Tensor, count: int) -> torch.Tensor:
    """Invert `_pack`."""
    if words.shape[-1] * 8 != count:
        raise InputError(
            f"{count} outputs do not fit into the stored {tuple(words.shape)}: the file is damaged."
        )
    return unpack_words(words, 4, count).unflatten(-1, (-1, 8))[..., list(_PLACE)].flatten(-2)

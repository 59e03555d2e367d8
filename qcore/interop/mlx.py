"""MLX's affine quantization (read by mlx-lm and LM Studio on Apple computers, and by mlx-cpu).

    w = scale · code + bias

For a weight of N outputs and K inputs in groups of 32, 64 or 128, codes of 2, 3, 4, 5, 6 or 8 bits:

    weight  uint32  (N, K · b / 32)    one little-endian stream of bits per row
    scales  float   (N, K / group)
    biases  float   (N, K / group)     not to be confused with `bias` (N,), the layer's own

A zero point becomes bias = −scale · zero. Float16 holds that product if the zero point is a power of two, as
that of symmetric formats is, and else almost never: then scales and biases are stored in float32, whose 24
digits hold every product of the 11 of float16 and 8 of a zero point. So the numbers are always equal to
qcore's. A weight with one scale per row repeats it for each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcore.base.errors import InputError
from qcore.formats.affine import Affine
from qcore.formats.kinds import Format
from qcore.formats.signed import Signed
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.interop.grid import Grid, need, pack_words, stored_scale, unpack_words

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
SUFFIXES = ("weight", "scales", "biases")


def group_size(format: Format, columns: int) -> int | None:
    """Return the group size in which MLX stores a weight of `columns` inputs in `format`: its own, or for one
    scale per row the largest of MLX's that divides the inputs. None if there is none."""
    own = format.group_size
    sizes = GROUPS if own is None else (own,)
    return max((size for size in sizes if size in GROUPS and columns % size == 0), default=None)


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return why MLX cannot hold a weight of `format` and `shape` (N, K), with the nearest recipe, or
    None."""
    if not format.even:
        near = min(BITS, key=lambda bits: (abs(bits - format.bits), bits))
        return (
            f"MLX stores integers with a scale and a float minimum per group, not {format.label}. The "
            f"nearest recipe is affine{near}-g64."
        )
    if format.bits not in BITS:
        return (
            f"MLX stores codes of {', '.join(map(str, BITS))} bits, not {format.bits}. The nearest recipe is "
            "affine8-g64."
        )
    if format.group_size is not None and format.group_size not in GROUPS:
        near = min(GROUPS, key=lambda size: abs(size - (format.group_size or 0)))
        label = format.label.replace(f"g{format.group_size}", f"g{near}")
        return f"MLX has groups of 32, 64 and 128 inputs, not {format.group_size}. The nearest is {label}."
    if group_size(format, shape[1]) is None:
        return (
            f"MLX needs groups of 32, 64 or 128 that divide the inputs, but {shape[1]} inputs are no "
            f"multiple of {format.group_size or 32}. Leave the module out with --skip, or choose a smaller "
            "group."
        )
    return None


def encode(weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the parts of `weight`, with the scales and biases of `dtype`. Raise `InputError` for a weight
    that MLX cannot hold, and for a bias beyond float16."""
    format, columns = weight.format, weight.shape[1]
    if reason := reason_against(format, weight.shape):
        raise InputError(reason)
    scale, bias = weight.scales(), weight.minimums()
    assert scale is not None
    if bias is None:
        bias = -scale * weight.zero_points()
    if format.group_size is None:
        groups = columns // (group_size(format, columns) or columns)
        scale, bias = scale.expand(-1, groups), bias.expand(-1, groups)
    scale, bias = scale.to(dtype(format)), bias.to(dtype(format))
    if not bias.is_meta and not bias.isfinite().all():
        raise InputError("A group of weights is too large for MLX: the bias of its scale exceeds float16.")
    return {
        "weight": pack_words(weight.unpacked_codes(), format.bits).view(torch.uint32),
        "scales": scale.contiguous(),
        "biases": bias.contiguous(),
    }


def dtype(format: Format) -> torch.dtype:
    """Return the dtype that holds all scales and biases of weights in `format` exactly."""
    plain = isinstance(format, Uniform | Signed) and format.symmetric
    return torch.float16 if plain or isinstance(format, Affine) else torch.float32


def read(
    parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (bits, codes (N, K), scales and biases float32 (N, G)). `config` is the folder's "quantization"
    or the module's entry in it. Raise `InputError` for another mode, and for parts that contradict each
    other."""
    if (mode := config.get("mode", "affine")) != "affine":
        raise InputError(f"The MLX mode {mode!r} is not supported; qcore reads affine.")
    bits, size = config.get("bits"), config.get("group_size")
    if bits not in BITS or size not in (16, *GROUPS):
        raise InputError(
            f"The config states {bits!r} bits in groups of {size!r}, but MLX has 2, 3, 4, 5, 6 or 8 bits in "
            "groups of 32, 64 or 128."
        )
    words, scale, bias = (need(parts, name, 2) for name in SUFFIXES)
    columns = scale.shape[1] * size
    if words.shape != (scale.shape[0], columns * bits // 32) or bias.shape != scale.shape:
        raise InputError(
            f"A weight is stored as {tuple(words.shape)}, its scales as {tuple(scale.shape)} and its biases "
            f"as {tuple(bias.shape)}, which do not belong together at {bits} bits in groups of {size}: the "
            "file is damaged."
        )
    codes = unpack_words(words.contiguous().view(torch.int32), bits, columns)
    return bits, codes, scale.float(), bias.float()


def decode(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> QuantizedTensor:
    """Return the weight with the stored codes: `Uniform` if every bias is −scale times an integer zero point
    of the grid, exactly, and otherwise `Affine`, with scales and minimums rounded to float16.

    Raise `InputError` as `read` does, and for scales that float16 cannot hold.
    """
    bits, codes, scale, bias = read(parts, config)
    size, name = int(config["group_size"]), "An MLX weight"
    zero = torch.where(scale == 0, 0.0, -bias / scale).round().clamp(0, (1 << bits) - 1)
    if torch.equal(-scale * zero, bias + 0.0) and torch.equal(scale.half().float(), scale):
        return Grid(bits, size, codes, scale, zero.to(torch.int16)).to_weight(name)
    return QuantizedTensor.from_codes(
        Affine(bits, size), codes, stored_scale(scale, name), minimum=stored_scale(bias, name)
    )


def dequantize(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    """Return the weight, float32 (N, K)."""
    _, codes, scale, bias = read(parts, config)
    size = int(config["group_size"])
    return codes.float() * scale.repeat_interleave(size, 1) + bias.repeat_interleave(size, 1)


def config(formats: Mapping[str, tuple[int, int]], *, kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entry "quantization" of config.json of a model with these (bits, group size) by module. The
    most frequent pair is the default; other modules are named, and `kept` ones, left in floating point, are
    false."""
    pairs = list(formats.values())
    bits, size = max(set(pairs), key=lambda pair: (pairs.count(pair), pair))
    made: dict[str, Any] = {"group_size": size, "bits": bits, "mode": "affine"}
    for module, pair in formats.items():
        if pair != (bits, size):
            made[module] = {"group_size": pair[1], "bits": pair[0], "mode": "affine"}
    return made | dict.fromkeys(kept, False)

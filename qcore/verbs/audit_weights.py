"""Stored tensors grouped into weights: which tensors hold the codes, scales and zero points of one matrix.

The suffix of a tensor's name, its dtype and the tensors beside it tell the form. Shapes and bits come from
the header where it tells them, and from quantization_config otherwise.

    GPTQ, AWQ             X.qweight  X.qzeros  X.scales  (X.g_idx)
    compressed-tensors    X.weight_packed  X.weight_scale  (X.weight_shape  X.weight_zero_point …),
                          X.weight int8 or fp8 with X.weight_scale
    bitsandbytes          X.weight uint8 with X.weight.absmax …,  X.weight int8 with X.SCB
    MLX                   X.weight uint32 with X.scales and X.biases
    fp8                   X.weight fp8 with X.weight_scale_inv or X.weight_scale
    MXFP4                 X_blocks  X_scales
    qcore                 the matrices of qcore.json
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError
from qcore.interop import compressed_tensors
from qcore.models.headers import TensorInfo
from qcore.verbs.audit_types import LedgerLine

if TYPE_CHECKING:
    from qcore.library.manifest import Manifest

PLAIN, OURS, GGML = "plain", "qcore", "ggml"
GPTQ, AWQ, COMPRESSED, BNB, MLX, FP8, MXFP4 = (
    "GPTQ",
    "AWQ",
    "compressed-tensors",
    "bitsandbytes",
    "MLX",
    "fp8",
    "MXFP4",
)
_WORD = 32  # bits of the integers into which codes are packed
_F8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_SCALES_OF_F8 = ("weight_scale_inv", "weight_scale", "input_scale")


@dataclass(frozen=True)
class StoredWeight:
    """A weight called `name` as in the unquantized model. `parts` maps roles ("qweight", "scales", …;
    "weight" for a plain tensor) to the names of the stored tensors. `shape` is the logical one; None where
    only the values tell it. `settings` are the bits, group size and other settings of its form, as far as
    known."""

    name: str
    kind: str
    form: str
    shape: tuple[int, ...] | None
    parts: Mapping[str, str]
    nbytes: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether the weight is stored in codes."""
        return self.kind != PLAIN

    @property
    def module(self) -> str:
        """The name of the module that holds the weight."""
        return self.name.removesuffix(".weight")

    def line(self, count: int | None = None) -> LedgerLine:
        """Return the line of the ledger; `count` weights where the shape is not known."""
        weights = math.prod(self.shape) if self.shape is not None else count or 0
        return LedgerLine(self.name, self.form, self.shape or (), weights, self.nbytes, self.quantized)


def group(
    tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any], manifest: Manifest | None
) -> list[StoredWeight]:
    """Return the weights that `tensors` hold, in the order of their names. `quantization` is the
    quantization_config of config.json (empty if there is none), `manifest` that of a model saved by qcore."""
    claimed: set[str] = set()
    found: list[StoredWeight] = []

    def claim(weight: StoredWeight) -> None:
        claimed.update(weight.parts.values())
        found.append(weight)

    if manifest is not None:
        for weight in _ours(tensors, manifest):
            claim(weight)
    for name in sorted(tensors):
        if name in claimed:
            continue
        for suffix, recognize in _ANCHORS:
            if name.endswith(suffix):
                recognized = recognize(name.removesuffix(suffix), tensors, quantization)
                if recognized is not None:
                    claim(recognized)
                    break
    for name, tensor in tensors.items():
        if name not in claimed:
            found.append(
                StoredWeight(name, PLAIN, tensor.dtype, tensor.shape, {"weight": name}, tensor.nbytes)
            )
    return sorted(found, key=lambda weight: weight.name)


Recognize = Callable[[str, Mapping[str, TensorInfo], Mapping[str, Any]], StoredWeight | None]


def _weight(
    stem: str,
    kind: str,
    form: str,
    shape: tuple[int, ...] | None,
    tensors: Mapping[str, TensorInfo],
    parts: Mapping[str, str],
    settings: Mapping[str, Any],
) -> StoredWeight:
    present = {role: name for role, name in parts.items() if name in tensors}
    size = sum(tensors[name].nbytes for name in present.values())
    return StoredWeight(f"{stem}.weight", kind, form, shape, present, size, settings)


def _roles(stem: str, *roles: str) -> dict[str, str]:
    return {role: f"{stem}.{role}" for role in roles}


def _gptq_or_awq(
    stem: str, tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> StoredWeight | None:
    parts = _roles(stem, "qweight", "qzeros", "scales", "g_idx")
    words, scales = tensors[parts["qweight"]], tensors.get(parts["scales"])
    if scales is None or len(words.shape) != 2 or len(scales.shape) != 2 or not all(scales.shape):
        return None
    groups, rows = scales.shape
    if words.shape[1] == rows:
        order = tensors.get(parts["g_idx"])
        columns = order.shape[0] if order is not None and len(order.shape) == 1 else None
        bits = words.shape[0] * _WORD // columns if columns else _bits(quantization)
        if bits is None or not 1 < bits <= 8:
            return None
        columns = columns or words.shape[0] * _WORD // bits
        kind = GPTQ
    else:
        bits, columns, kind = words.shape[1] * _WORD // rows, words.shape[0], AWQ
    size = columns // groups if groups > 1 else -1
    settings = {"bits": bits, "group_size": size}
    form = f"{kind} int{bits}" + (f" g{size}" if size > 0 else "")
    return _weight(stem, kind, form, (rows, columns), tensors, parts, settings)


def _bits(quantization: Mapping[str, Any]) -> int | None:
    bits = quantization.get("bits", quantization.get("w_bit"))
    return bits if isinstance(bits, int) and 1 < bits <= 8 else None


def _packed(
    stem: str, tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> StoredWeight | None:
    parts = _roles(
        stem, "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"
    ) | {
        "weight_global_scale": f"{stem}.weight_global_scale",
        "input_global_scale": f"{stem}.input_global_scale",
    }
    words, scale = tensors[parts["weight_packed"]], tensors.get(parts["weight_scale"])
    if len(words.shape) != 2:
        return None
    scheme = _scheme(quantization, stem)
    bits = scheme.get("num_bits")
    if not isinstance(bits, int) or not 1 < bits <= 8:
        return _weight(stem, COMPRESSED, COMPRESSED, None, tensors, parts, {})
    unit = 8 if words.dtype == "U8" else _WORD
    columns = words.shape[1] * unit // bits
    stated = scheme.get("group_size")
    size = stated if isinstance(stated, int) and stated > 0 else 0
    if size and scale is not None and len(scale.shape) == 2 and 0 <= columns - scale.shape[1] * size < unit:
        columns = min(columns, scale.shape[1] * size)
    form = f"{COMPRESSED} {scheme.get('type', 'int')}{bits}" + (f" g{size}" if size else "")
    return _weight(stem, COMPRESSED, form, (words.shape[0], columns), tensors, parts, {"scheme": scheme})


def _scheme(quantization: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """Return the settings of the weights of `module` in a compressed-tensors config; empty if there are
    none."""
    try:
        found = compressed_tensors.scheme(quantization, module) or {}
    except (InputError, AttributeError, TypeError):  # a config that is not of the form
        return {}
    weights = found.get("weights")
    return weights if isinstance(weights, dict) else {}


def _in_place(
    stem: str, tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> StoredWeight | None:
    """Recognize a quantized matrix that is stored under the name of the original: X.weight."""
    name = f"{stem}.weight"
    tensor = tensors[name]
    if tensor.dtype in _F8:
        parts = {"weight": name} | _roles(stem, *_SCALES_OF_F8)
        kind = COMPRESSED if quantization.get("quant_method") == COMPRESSED else FP8
        form = FP8 if kind == FP8 else f"{COMPRESSED} fp8"
        return _weight(stem, kind, form, tensor.shape, tensors, parts, {})
    if tensor.dtype == "I8" and f"{stem}.SCB" in tensors:
        parts = {"weight": name} | _roles(stem, "SCB", "weight_format")
        return _weight(stem, BNB, f"{BNB} int8", tensor.shape, tensors, parts, {})
    if tensor.dtype == "I8" and f"{stem}.weight_scale" in tensors:
        parts = {"weight": name} | _roles(stem, "weight_scale", "weight_zero_point", "input_scale")
        settings = {"scheme": _scheme(quantization, stem)}
        return _weight(stem, COMPRESSED, f"{COMPRESSED} int8", tensor.shape, tensors, parts, settings)
    if tensor.dtype == "U8" and f"{name}.absmax" in tensors:
        states = [other for other in tensors if other.startswith(f"{name}.quant_state.")]
        parts = {"weight": name} | {
            role: f"{name}.{role}" for role in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        }
        form = states[0].rpartition("__")[2] if states else "4 bit"
        if states:
            parts["quant_state"] = states[0]
        return _weight(stem, BNB, f"{BNB} {form}", None, tensors, parts, {"count": 2 * tensor.elements})
    if tensor.dtype == "U32" and f"{stem}.scales" in tensors and len(tensor.shape) >= 2:
        return _mlx(stem, tensors, quantization)
    return None


def _mlx(
    stem: str, tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> StoredWeight | None:
    parts = _roles(stem, "weight", "scales", "biases")
    words, scales = tensors[parts["weight"]], tensors[parts["scales"]]
    own = quantization.get(stem)
    settings = {**quantization, **(own if isinstance(own, dict) else {})}
    size = settings.get("group_size")
    if not isinstance(size, int) or size < 1 or not scales.shape or not scales.shape[-1]:
        return _weight(stem, MLX, MLX, None, tensors, parts, {})
    columns = scales.shape[-1] * size
    bits = words.shape[-1] * _WORD // columns
    shape = (*words.shape[:-1], columns)
    settings = {"bits": bits, "group_size": size}
    return _weight(stem, MLX, f"{MLX} int{bits} g{size}", shape, tensors, parts, settings)


def _mxfp4(
    stem: str, tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> StoredWeight | None:
    parts = {"blocks": f"{stem}_blocks", "scales": f"{stem}_scales"}
    blocks = tensors[parts["blocks"]]
    if parts["scales"] not in tensors or blocks.dtype != "U8" or len(blocks.shape) < 3:
        return None
    *outer, rows, groups, half = blocks.shape
    shape = (*outer, groups * half * 2, rows)  # the model holds it transposed, inputs before outputs
    found = _weight(stem, MXFP4, MXFP4, shape, tensors, parts, {})
    return StoredWeight(stem, MXFP4, MXFP4, shape, found.parts, found.nbytes)


_ANCHORS: tuple[tuple[str, Recognize], ...] = (
    (".qweight", _gptq_or_awq),
    (".weight_packed", _packed),
    (".weight", _in_place),
    ("_blocks", _mxfp4),
)


def _ours(tensors: Mapping[str, TensorInfo], manifest: Manifest) -> Iterator[StoredWeight]:
    """Yield the matrices of a model saved by qcore; matrices that share their parts are one weight."""
    from qcore.formats.tensor import QuantizedTensor
    from qcore.library.sparse import MASK, VALUES

    sparse = {entry.name for entry in manifest.sparse}
    for matrix in manifest.matrices.values():
        if matrix.like != matrix.module:
            continue
        parts = {part: f"{matrix.module}.{part}" for part in QuantizedTensor.PARTS}
        for part, name in list(parts.items()):
            if name in sparse:
                parts |= {f"{part}.{each}": f"{name}.{each}" for each in (MASK, VALUES)}
        yield _weight(matrix.module, OURS, matrix.format.label, matrix.shape, tensors, parts, {})
    for entry in manifest.sparse:
        parts = {each: f"{entry.name}.{each}" for each in (MASK, VALUES)}
        if entry.module is None and all(name in tensors for name in parts.values()):
            shape = tensors[parts[MASK]].shape[0], entry.columns
            size = sum(tensors[name].nbytes for name in parts.values())
            form = f"{tensors[parts[VALUES]].dtype} without zeros"
            yield StoredWeight(entry.name, PLAIN, form, shape, parts, size)

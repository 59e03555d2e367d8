"""The forms in which other projects store quantized weights in safetensors, and how each is read.

    gptq, awq                    `interop/gptq.py`, `interop/awq.py`
    compressed-tensors           `interop/compressed_tensors.py`; `interop/fp8.py` for 8-bit floats
    bitsandbytes                 `interop/bitsandbytes.py`
    mlx                          `interop/mlx.py`
    fp8, fbgemm_fp8, modelopt    `interop/fp8.py`

A module is in a form if the file holds the form's tensors under the module's name. config.json gives the
settings to read them with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcore.base import patterns
from qcore.interop import awq, bitsandbytes, compressed_tensors, fp8, gptq, mlx
from qcore.models.headers import FLOATS, TensorInfo

if TYPE_CHECKING:
    import torch

    from qcore.formats.tensor import QuantizedTensor

Parts = Mapping[str, "torch.Tensor"]
Settings = Mapping[str, Any]
_FLOAT8, _WORDS, _INT8 = ("F8_E4M3", "F8_E5M2"), ("I32", "U32"), ("I8",)


def _whole(config: Settings, module: str) -> Settings | None:
    return config


def _by_rule(config: Settings, module: str) -> Settings | None:
    """Return the settings with the first rule of GPTQModel's `dynamic` that matches from the start of the
    name: "-:" excludes a module, "+:" or no sign changes its settings."""
    for pattern, changes in (config.get("dynamic") or {}).items():
        sign, expression = (pattern[0], pattern[2:]) if pattern[:2] in ("-:", "+:") else ("+", pattern)
        if patterns.matches(expression, module):
            return None if sign == "-" else {**config, **(changes or {})}
    return config


def _by_target(config: Settings, module: str) -> Settings | None:
    return compressed_tensors.scheme(config, module)


def _by_entry(config: Settings, module: str) -> Settings | None:
    """Return the module's own entry in MLX's settings, or the settings; None if the entry is false."""
    own = config.get(module, config)
    return own if isinstance(own, Mapping) else None


def _group_of_floats(parts: Parts, settings: Settings) -> torch.Tensor:
    return fp8.dequantize(parts, settings.get("weights") or {})


def _integers(settings: Settings) -> str:
    """Return "int4-g128" for the settings of integer codes."""
    weights = settings.get("weights") or settings
    bits = weights.get("num_bits") or weights.get("bits") or weights.get("w_bit") or 4
    size = weights.get("group_size") or weights.get("q_group_size")
    return f"int{bits}" + (f"-g{size}" if isinstance(size, int) and size > 0 else "")


def _four_or_eight(settings: Settings) -> str:
    eight = settings.get("load_in_8bit") or settings.get("_load_in_8bit")
    return "int8" if eight else str(settings.get("bnb_4bit_quant_type", "nf4"))


def _eight(settings: Settings) -> str:
    return "fp8"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of quantized weights. A module is in it if the file holds all `marks`, perhaps with `others`;
    the first mark has one of the `dtypes`.

    `settings` returns the settings of a module from the quantization_config, None if that excludes the
    module. `label` names the stored type. `decode` returns codes, or raises `InputError` if no format holds
    them; without it, `dequantize` reads values for the `reason` given.
    """

    marks: tuple[str, ...]
    others: tuple[str, ...] = ()
    dtypes: tuple[str, ...]
    settings: Callable[[Settings, str], Settings | None] = _whole
    label: Callable[[Settings], str] = _integers
    decode: Callable[[Parts, Settings], QuantizedTensor] | None = None
    dequantize: Callable[[Parts, Settings], torch.Tensor]
    reason: str | None = None

    def fits(self, parts: Mapping[str, TensorInfo]) -> bool:
        """Return whether a module with these tensors is in this form."""
        return all(mark in parts for mark in self.marks) and parts[self.marks[0]].dtype in self.dtypes


_FLOATS8 = tuple(
    Form(marks=("weight", scale), dtypes=_FLOAT8, label=_eight, dequantize=fp8.dequantize, reason=fp8.REASON)
    for scale in ("weight_scale_inv", "weight_scale")
)
FORMS: dict[str, tuple[Form, ...]] = {
    "gptq": (
        Form(
            marks=("qweight", "qzeros", "scales"),
            others=("g_idx",),
            dtypes=_WORDS,
            settings=_by_rule,
            decode=gptq.decode,
            dequantize=gptq.dequantize,
        ),
    ),
    "awq": (
        Form(
            marks=("qweight", "scales"),
            others=("qzeros",),
            dtypes=_WORDS,
            decode=awq.decode,
            dequantize=awq.dequantize,
        ),
    ),
    "compressed-tensors": (
        Form(
            marks=("weight_packed", "weight_scale"),
            others=("weight_shape", "weight_zero_point", "weight_g_idx"),
            dtypes=_WORDS,
            settings=_by_target,
            decode=compressed_tensors.decode,
            dequantize=compressed_tensors.dequantize,
        ),
        Form(
            marks=("weight", "weight_scale"),
            others=("weight_zero_point", "weight_g_idx"),
            dtypes=_INT8,
            settings=_by_target,
            decode=compressed_tensors.decode,
            dequantize=compressed_tensors.dequantize,
        ),
        Form(
            marks=("weight", "weight_scale"),
            others=("weight_zero_point",),
            dtypes=_FLOAT8,
            settings=_by_target,
            label=_eight,
            dequantize=_group_of_floats,
            reason=fp8.REASON,
        ),
    ),
    "bitsandbytes": (
        Form(
            marks=("weight", "SCB"),
            others=("weight_format",),
            dtypes=_INT8,
            label=_four_or_eight,
            decode=bitsandbytes.decode,
            dequantize=bitsandbytes.dequantize,
        ),
        Form(
            marks=("weight", "weight.absmax"),
            others=(
                "weight.quant_map",
                "weight.nested_absmax",
                "weight.nested_quant_map",
                "weight.quant_state.bitsandbytes__nf4",
                "weight.quant_state.bitsandbytes__fp4",
            ),
            dtypes=("U8", *FLOATS),  # floats, if the bytes were stored as such to please FSDP
            label=_four_or_eight,
            decode=bitsandbytes.decode,
            dequantize=bitsandbytes.dequantize,
        ),
    ),
    "mlx": (
        Form(
            marks=("weight", "scales", "biases"),
            dtypes=_WORDS,
            settings=_by_entry,
            decode=mlx.decode,
            dequantize=mlx.dequantize,
        ),
    ),
    "fp8": _FLOATS8,
    "fbgemm_fp8": _FLOATS8,
    "modelopt": _FLOATS8,
}

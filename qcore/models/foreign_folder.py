"""Folders of safetensors that other projects quantized, as weights of a model with their own codes.

config.json names the method and its settings; the file decides which weights are quantized. Where the two
contradict each other, the model is refused: codes are never taken for numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import mxfp4
from qcore.models.checkpoint import Checkpoint
from qcore.models.config import quantization
from qcore.models.foreign_forms import FORMS, Form, Settings
from qcore.models.headers import FLOATS, TensorInfo
from qcore.models.mapping import read_file, torch_dtype
from qcore.models.places import Places, Unplaced
from qcore.models.stored import StoredWeight, Widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MXFP4 = "mxfp4"
METHODS = (*FORMS, MXFP4)
_FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_BLOCKS, _SCALES = "_blocks", "_scales"
_CACHE = re.compile(r"\.(k|v|q|prob|kv)_scale$")
_ACTIVATIONS = re.compile(
    r"\.((in|out)put_(scale|zero_point|global_scale)|activation_scale(_ub)?|input_scale_ub)$"
)


@dataclass
class _Found:
    """The tensors of a folder: `modules` maps each quantized module to its form and its tensors, `plain` the
    other tensors, `left` those that only quantized activations or caches need."""

    modules: dict[str, tuple[Form, dict[str, TensorInfo]]] = field(default_factory=dict)
    plain: dict[str, TensorInfo] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def describe(checkpoint: Checkpoint) -> str:
    """Return sentences about the quantization of the folder. Raise `InputError` if it cannot be read: an
    unknown method, settings that change more than the weights, or a file that contradicts its config."""
    method, settings = _method(checkpoint)
    _refuse_transforms(checkpoint, settings)
    if method == MXFP4:
        if not any(name.endswith(_BLOCKS) for name in checkpoint.tensors):
            raise _contradiction(checkpoint, method)
        return "Quantized by another project as mxfp4, with its own codes."
    found = _sort(checkpoint, method)
    if not found.modules:
        raise _contradiction(checkpoint, method)
    labels = {
        form.label(_settings(checkpoint, form, settings, module))
        for module, (form, _) in found.modules.items()
    }
    named = method if method in labels else f"{method} {', '.join(sorted(labels))}"
    reasons = dict.fromkeys(form.reason for form, _ in found.modules.values() if form.reason)
    words = f"Quantized by another project as {named}" + (". " if reasons else ", with its own codes.")
    words += " ".join(reasons)
    if _quantizes_activations(settings):
        words += " Its runtime quantizes activations as well; here only the weights are quantized."
    if any(_CACHE.search(name) for name in found.left):
        words += " Its scales for a quantized key-value cache are not used."
    return words


def values(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the tensors that dequantizing the folder gives, by name: their shapes, and BF16 if it certainly
    holds every value, else F32. Raise `InputError` as `describe` does."""
    describe(checkpoint)  # refuses what cannot be read
    method, _ = _method(checkpoint)
    shapes: dict[str, tuple[int, ...]] = {}
    exact = True  # a few bits times a power of two
    if method == MXFP4:
        others = {name: info for name, info in checkpoint.tensors.items() if not name.endswith(_SCALES)}
        for name in [name for name in others if name.endswith(_BLOCKS)]:
            if len(shape := others.pop(name).shape) != 4:
                raise _contradiction(checkpoint, method)
            experts, rows, groups, _ = shape
            shapes[name.removesuffix(_BLOCKS)] = experts, groups * mxfp4.GROUP, rows
    else:
        found = _sort(checkpoint, method)
        others = found.plain
        for module, (form, parts) in found.modules.items():
            shapes[f"{module}.weight"] = parts["weight"].shape
            exact &= parts[form.marks[1]].dtype == "F8_E8M0"
    dtype = "BF16" if exact and {info.dtype for info in others.values()} <= {"BF16"} else "F32"
    shapes |= {name: info.shape for name, info in others.items()}
    width = torch_dtype(dtype).itemsize
    return {
        name: TensorInfo(dtype, shape, width * math.prod(shape), "model.safetensors", 0)
        for name, shape in shapes.items()
    }


def weights(checkpoint: Checkpoint, model: PreTrainedModel) -> list[StoredWeight]:
    """Return the weights of the folder, not yet read, for `model`, which may be on the meta device. Raise
    `InputError` as `describe` does, and for a tensor without a place in the model."""
    method, settings = _method(checkpoint)
    _refuse_transforms(checkpoint, settings)
    place = Places(checkpoint.name, model)
    if method == MXFP4:
        others = {
            name: info for name, info in checkpoint.tensors.items() if not name.endswith((_BLOCKS, _SCALES))
        }
        return [*_experts(checkpoint, model), *place(list(_plain(checkpoint, others)))]
    found = _sort(checkpoint, method)
    unplaced = []
    for module, (form, infos) in found.modules.items():
        chosen = _settings(checkpoint, form, settings, module)
        label = form.label(chosen)
        unplaced.append(
            Unplaced(
                f"{module}.weight",
                method if method == label else f"{method} {label}",
                True,
                sum(info.nbytes for info in infos.values()),
                partial(_read, checkpoint, form, infos, chosen),
                form.reason,
            )
        )
    return place([*unplaced, *_plain(checkpoint, found.plain)])


# -- the method ----------------------------------------------------------------------------------------------


def _method(checkpoint: Checkpoint) -> tuple[str, Settings]:
    """Return the method and its settings. Raise `InputError` for an unknown method."""
    method, settings = quantization(checkpoint.config, checkpoint.folder) or ("method not named", {})
    if method not in METHODS:
        raise InputError(
            f"{checkpoint.name} is quantized by another library ({method}) in a form that qcore does not "
            f"read. It reads {', '.join(METHODS)} and GGUF files. Choose one of these, or the original model."
        )
    return method, settings


def _refuse_transforms(checkpoint: Checkpoint, settings: Settings) -> None:
    if settings.get("transform_config"):
        raise InputError(
            f"{checkpoint.name} rotates activations while it runs (transform_config), which qcore does not. "
            "Choose a version without transforms."
        )
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise InputError(
            f"{checkpoint.name} stores sparse weights ({sparsity['format']}), which qcore does not read. "
            "Choose a version with dense weights."
        )


def _contradiction(checkpoint: Checkpoint, method: str) -> InputError:
    return InputError(
        f"The config.json of {checkpoint.name} names {method}, but no weight is stored in that form. The "
        "files belong to different models, or were not saved as a whole. Download the model again."
    )


def _settings(checkpoint: Checkpoint, form: Form, settings: Settings, module: str) -> Settings:
    """Return the settings of a module that is stored quantized. Raise `InputError` if the config excludes
    it."""
    found = form.settings(settings, module)
    if found is None:
        raise InputError(
            f"{checkpoint.name} stores {module} quantized, but its quantization_config excludes that module, "
            "so the settings are unknown. The config does not belong to these files."
        )
    return found


def _quantizes_activations(settings: Settings) -> bool:
    groups = settings.get("config_groups")
    known = groups.values() if isinstance(groups, Mapping) else ()
    return settings.get("activation_scheme") is not None or any(
        isinstance(group, Mapping) and bool(group.get("input_activations")) for group in known
    )


# -- the tensors ---------------------------------------------------------------------------------------------


def _sort(checkpoint: Checkpoint, method: str) -> _Found:
    """Return the tensors by module and form. Raise `InputError` for a quantized weight that is incomplete."""
    forms = FORMS[method]
    suffixes = sorted({part for form in forms for part in (*form.marks, *form.others)}, key=len, reverse=True)
    modules: dict[str, dict[str, TensorInfo]] = {}
    found = _Found()
    for name, info in checkpoint.tensors.items():
        suffix = next((suffix for suffix in suffixes if name.endswith(f".{suffix}")), None)
        if suffix is not None:
            modules.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = info
        elif _CACHE.search(name) or _ACTIVATIONS.search(name):
            found.left.append(name)
        else:
            found.plain[name] = info
    for module, parts in modules.items():
        form = next((form for form in forms if form.fits(parts)), None)
        if form is not None:
            found.modules[module] = form, parts
            continue
        for suffix, info in parts.items():
            if suffix != "weight" or info.dtype not in FLOATS:
                raise InputError(
                    f"{checkpoint.name} stores {module}.{suffix} ({info.dtype}), but not all that a weight "
                    f"of {method} consists of ({', '.join(forms[0].marks)}). Download the model again."
                )
            found.plain[f"{module}.weight"] = info
    return found


def _plain(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> Iterator[Unplaced]:
    """Return the weights in floating point. Raise `InputError` for integers that could be codes."""
    for name, info in tensors.items():
        if info.dtype not in FLOATS and (name.endswith(".weight") or info.dtype in _FLOAT8):
            raise InputError(
                f"{checkpoint.name} stores {name} as {info.dtype}, which its quantization_config does not "
                "explain. Download the model again, or start from the original model."
            )
        yield Unplaced(name, info.dtype, False, info.nbytes, partial(_load, checkpoint, info, align=True))


def _load(checkpoint: Checkpoint, info: TensorInfo, *, align: bool = False) -> torch.Tensor:
    """Return one stored tensor, mapped; see `read_file` for `align`. Raise `InputError` if the file has
    changed."""
    raw = TensorInfo("U8", info.shape, info.nbytes, info.file, info.start) if info.dtype in _FLOAT8 else info
    try:
        tensor = read_file(checkpoint.folder / info.file, {"": raw}, align=align)[""]
    except OSError as error:
        raise InputError(f"{info.file} of {checkpoint.name} can no longer be read: {error}.") from error
    return tensor.view(_FLOAT8[info.dtype]) if info.dtype in _FLOAT8 else tensor


def _read(
    checkpoint: Checkpoint, form: Form, infos: Mapping[str, TensorInfo], settings: Settings
) -> QuantizedTensor | Widened | torch.Tensor:
    """Return the codes of a module, or its values where no format holds them."""
    parts = {name: _load(checkpoint, info) for name, info in infos.items()}
    if form.decode is None:
        return form.dequantize(parts, settings)
    try:
        return form.decode(parts, settings)
    except InputError as error:
        values = form.dequantize(parts, settings)  # raises again if the parts are damaged
        return Widened(values, f"Dequantized to fp32: {error}")


# -- experts in mxfp4 ----------------------------------------------------------------------------------------


def _experts(checkpoint: Checkpoint, model: PreTrainedModel) -> Iterator[StoredWeight]:
    """Return the matrices of gpt-oss's experts. Raise `InputError` for one without scales, or without a place
    in the model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, blocks in checkpoint.tensors.items():
        if not name.endswith(_BLOCKS):
            continue
        parameter = name.removesuffix(_BLOCKS)
        scales = checkpoint.tensors.get(parameter + _SCALES)
        if scales is None or parameter not in parameters or len(blocks.shape) != 4 or len(scales.shape) != 3:
            raise InputError(
                f"{checkpoint.name} stores {name} without scales of its own, or for a place that the model "
                "does not have. Download the model again."
            )
        for expert in range(blocks.shape[0]):
            yield StoredWeight(
                name,
                parameter,
                MXFP4,
                True,
                (blocks.nbytes + scales.nbytes) // blocks.shape[0],
                parameters[parameter].numel() // blocks.shape[0],
                partial(_read_expert, checkpoint, blocks, scales, expert),
                expert=expert,
            )


def _read_expert(
    checkpoint: Checkpoint, blocks: TensorInfo, scales: TensorInfo, expert: int
) -> QuantizedTensor | Widened:
    parts = _load(checkpoint, blocks)[expert], _load(checkpoint, scales)[expert]
    try:
        return mxfp4.decode(*parts)
    except InputError as error:
        return Widened(mxfp4.dequantize(*parts), f"Dequantized to fp32: {error}")

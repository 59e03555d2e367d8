"""The tensors of a GGUF file as weights of a transformers model, with their own codes.

Tensors are mapped from the file and decoded in pieces of some rows, so the work space is a few megabytes.
The inverse of llama.cpp's conversion is applied: names are mapped back, the rows of queries and keys return
to the order of transformers' rotary embedding, and norms lose the 1 that Gemma's were given. Source:
llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import ggml
from qcore.models import gguf_file
from qcore.models.gguf_header import Header, Tensor
from qcore.models.headers import TensorInfo
from qcore.models.mapping import read_file
from qcore.models.stored import StoredWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_PIECE = 1 << 21  # weights that are decoded at once
_EXPERTS = re.compile(r"(.*)\.experts\.(gate_up_proj|down_proj)")
_IGNORED = (  # in the config, see `gguf_header.rope_scaling`
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
_PERMUTED = ("llama",)  # architectures whose queries and keys llama.cpp stores in pairs
_SHIFTED = ("gemma", "gemma2", "gemma3", "nemotron")  # architectures whose norms llama.cpp stores plus 1
ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "qwen2moe",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "starcoder2",
)


@dataclass(frozen=True)
class _Place:
    """The model's `parameter` of a stored tensor; `part` as in `StoredWeight`. `fused`: of all experts."""

    parameter: str
    part: int = 0
    fused: bool = False


def keeps_codes(header: Header) -> bool:
    """Return whether the file has quantized tensors of an architecture whose codes can be kept."""
    return header.architecture in ARCHITECTURES and bool(header.quantized_types)


def weights(path: Path, header: Header, model: PreTrainedModel) -> list[StoredWeight]:
    """Return the weights of the GGUF file `path`, not yet read, for `model`, which may be on the meta device.

    Raise `InputError` for a tensor of an unknown type, without a place in the model, or of another shape than
    its parameter.
    """
    places, found = _places(model, header.architecture), []
    for tensor in header.tensors:
        if tensor.name in _IGNORED:
            continue
        if tensor.name not in places:
            raise InputError(
                f"{path.name} holds {tensor.name}, which has no place in a {model.config.model_type} model."
            )
        if tensor.nbytes is None:
            raise InputError(
                f"{path.name} stores {tensor.name} as ggml's {tensor.type_name}, which the gguf package does "
                "not know. A later version of the package may."
            )
        place = places[tensor.name]
        wanted = _stored_shape(model, place)
        if _squeezed(tensor.shape) != _squeezed(wanted):
            raise InputError(
                f"{path.name} stores {tensor.name} in the shape {tensor.shape}, but its settings demand "
                f"{wanted}."
            )
        if place.fused:
            found += _experts(path, tensor, place)
        else:
            found.append(_one(path, tensor, place, header, model))
    return found


def _one(path: Path, tensor: Tensor, place: _Place, header: Header, model: PreTrainedModel) -> StoredWeight:
    """Return the weight of a tensor that fills a whole parameter."""
    shape = model.get_parameter(place.parameter).shape
    turned = _stored_shape(model, place) != tuple(shape)
    shifted = header.architecture in _SHIFTED and tensor.name.endswith("norm.weight")

    def finish(values: torch.Tensor) -> torch.Tensor:
        values = values.T.contiguous() if turned else values.view(shape)
        return values - 1 if shifted else values

    return _weight(path, tensor, place.parameter, _rows(tensor, header), finish)


def _as_read(values: torch.Tensor) -> torch.Tensor:
    return values


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _places(model: PreTrainedModel, architecture: str) -> dict[str, _Place]:
    """Return the places of all tensors that a GGUF file of `model` can hold, by their names there."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(number, model.config.get_text_config().num_hidden_layers)
    places: dict[str, _Place] = {}
    for parameter, _ in model.named_parameters(remove_duplicate=False):
        if match := _EXPERTS.fullmatch(parameter):
            parts = ("gate_proj", "up_proj") if match[2] == "gate_up_proj" else ("down_proj",)
            for part, each in enumerate(parts):
                if (name := known.get_name(f"{match[1]}.experts.{each}")) is not None:
                    places[f"{name}.weight"] = _Place(parameter, part, fused=True)
            continue
        stem, _, suffix = parameter.rpartition(".")
        if (name := known.get_name(stem)) is not None:
            places.setdefault(f"{name}.{suffix}", _Place(parameter))
    return places


def _stored_shape(model: PreTrainedModel, place: _Place) -> tuple[int, ...]:
    """Return the shape in which a GGUF file stores what fills `place`."""
    from transformers.pytorch_utils import Conv1D

    parameter = model.get_parameter(place.parameter)
    shape, owner = tuple(parameter.shape), model.get_submodule(place.parameter.rpartition(".")[0])
    if place.fused and place.parameter.endswith("gate_up_proj"):
        return (shape[0], shape[1] // 2, *shape[2:])
    return shape[::-1] if isinstance(owner, Conv1D) else shape


def _rows(tensor: Tensor, header: Header) -> torch.Tensor | None:
    """Return the order in which to read the stored rows; None for their own."""
    if header.architecture not in _PERMUTED or not re.search(r"\.attn_[qk]\.(weight|bias)$", tensor.name):
        return None
    key = "head_count_kv" if ".attn_k." in tensor.name else "head_count"
    heads = header.number(f"{header.architecture}.attention.{key}")
    if not isinstance(heads, int) or heads < 1 or tensor.shape[0] % (2 * heads):
        raise InputError(f"{tensor.name} has {tensor.shape[0]} rows, which {heads} heads cannot share.")
    return torch.arange(tensor.shape[0]).view(heads, -1, 2).transpose(1, 2).flatten()


def _experts(path: Path, tensor: Tensor, place: _Place) -> Iterator[StoredWeight]:
    """Return one weight per expert of a tensor (experts, outputs, inputs)."""
    experts, _, columns = tensor.shape
    each = (tensor.nbytes or 0) // experts
    for i in range(experts):
        part = replace(tensor, shape=tensor.shape[1:], start=tensor.start + i * each, nbytes=each)
        weight = _weight(path, part, place.parameter, None, _as_read)
        yield replace(weight, expert=i, part=place.part)


def _weight(
    path: Path,
    tensor: Tensor,
    parameter: str,
    rows: torch.Tensor | None,
    finish: Callable[[torch.Tensor], torch.Tensor],
) -> StoredWeight:
    """Return the weight of one tensor, whose stored `rows` are read in this order (None: as they are);
    `finish` brings values into the model's layout."""
    kind, reason = tensor.type_name, None
    quantized = kind not in gguf_file.PLAIN
    if not quantized:
        read: Callable = lambda: finish(_floats(path, tensor, rows))  # noqa: E731
    elif len(tensor.shape) == 2 and kind in ggml.FORMATS:
        read = lambda: _codes(path, tensor, rows)  # noqa: E731
    else:
        read = lambda: finish(_dequantized(path, tensor, rows))  # noqa: E731
        reason = f"Dequantized to fp32: no format of qcore holds {kind}."
    count = math.prod(tensor.shape)
    return StoredWeight(tensor.name, parameter, kind, quantized, tensor.nbytes or 0, count, read, reason)


def _bytes(path: Path, tensor: Tensor) -> torch.Tensor:
    """Return the stored bytes (rows, bytes per row), mapped. Raise `InputError` if the file has changed."""
    size = tensor.nbytes or 0
    info = TensorInfo("U8", (size,), size, path.name, tensor.start)
    try:
        data = read_file(path, {tensor.name: info})[tensor.name]
    except OSError as error:
        raise InputError(f"{path.name} can no longer be read: {error}.") from error
    return data.view(math.prod(tensor.shape[:-1]), -1)


def _pieces(
    data: torch.Tensor, columns: int, rows: torch.Tensor | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Return (place in the result, stored bytes) of some rows at a time."""
    step = max(1, _PIECE // max(1, columns))
    for start in range(0, data.shape[0], step):
        place = slice(start, min(start + step, data.shape[0]))
        yield place, data[place] if rows is None else data[rows[place]]


def _codes(path: Path, tensor: Tensor, rows: torch.Tensor | None) -> QuantizedTensor:
    """Return the codes of a matrix, decoded in pieces, so that the work space stays small."""
    count, columns = tensor.shape
    parts: dict[str, torch.Tensor] = {}
    for place, data in _pieces(_bytes(path, tensor), columns, rows):
        piece = ggml.decode(data, tensor.type_name, (data.shape[0], columns))
        for name, part in piece.parts().items():
            if not piece.is_stored(name):  # a fixed table, which belongs to the format
                parts[name] = part
                continue
            if name not in parts:
                parts[name] = part.new_empty(count, *part.shape[1:])
            parts[name][place] = part
    return QuantizedTensor(piece.format, (count, columns), **parts)


def _floats(path: Path, tensor: Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    data = _bytes(path, tensor)
    data = data if rows is None else data[rows]
    return data.view(_FLOATS[tensor.type_name]).view(tensor.shape)


def _dequantized(path: Path, tensor: Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return the values, float32, as the gguf package computes them."""
    from gguf import GGMLQuantizationType, dequantize

    values = torch.empty(math.prod(tensor.shape[:-1]), tensor.shape[-1])
    for place, data in _pieces(_bytes(path, tensor), tensor.shape[-1], rows):
        try:
            found = dequantize(data.numpy(), GGMLQuantizationType(tensor.type))
        except NotImplementedError as error:
            raise InputError(
                f"{path.name} stores {tensor.name} as {tensor.type_name}, which the gguf package cannot "
                "dequantize. Choose a file of another type."
            ) from error
        values[place] = torch.from_numpy(found)
    return values.view(tensor.shape)

"""The tensors of a GGUF file as weights of a transformers model, with their own codes.

Tensors are mapped from the file and decoded in pieces of some rows, so the work space is a few megabytes.
The inverse of llama.cpp's conversion is applied: names are mapped back, the rows of queries and keys return
to the order of transformers' rotary embedding, and norms lose the 1 that Gemma's were given. Source:
llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import ggml, gguf_names
from qcore.models.gguf_header import PLAIN, Header, Tensor
from qcore.models.headers import TensorInfo
from qcore.models.mapping import read_file
from qcore.models.stored import StoredWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_PIECE = 1 << 21  # weights that are decoded at once
_IGNORED = (  # in the config, see `gguf_config`
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
ARCHITECTURES = frozenset(known.name for known in gguf_names.ARCHITECTURES.values())
"""The architectures whose codes can be kept, by llama.cpp's names."""


@dataclass(frozen=True)
class _Place:
    """The model's `parameter` that a stored tensor fills in `place`; `part` as in `StoredWeight`."""

    parameter: str
    place: gguf_names.Place
    part: int = 0


def keeps_codes(header: Header) -> bool:
    """Return whether the file has quantized tensors of an architecture whose codes can be kept."""
    return header.architecture in ARCHITECTURES and bool(header.quantized_types)


def weights(path: Path, header: Header, model: PreTrainedModel) -> list[StoredWeight]:
    """Return the weights of the GGUF file `path`, not yet read, for `model`, which may be on the meta device.

    Raise `InputError` for a tensor of an unknown type, without a place in the model, or of another shape than
    its parameter.
    """
    places = _places(model)
    found: list[StoredWeight] = []
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
        if len(wanted) == 3:
            found += _experts(path, tensor, place)
        else:
            found.append(_one(path, tensor, place, model))
    return found + [_zeros(parameter, model) for parameter in absent_biases(header, model)]


def absent_biases(header: Header, model: PreTrainedModel) -> list[str]:
    """Return the biases of `model` that the file does not hold and that are zero therefore: in a Llama with
    biases, transformers' model has all of them, and llama.cpp's only those that the file holds."""
    if model.config.model_type != "llama":
        return []
    held = {tensor.name for tensor in header.tensors}
    places = _places(model)
    return [
        place.parameter
        for name, place in places.items()
        if place.parameter.endswith(".bias") and name not in held
    ]


def _zeros(parameter: str, model: PreTrainedModel) -> StoredWeight:
    shape = model.get_parameter(parameter).shape
    reason = "The file holds no such bias, which means zero."
    return StoredWeight(
        parameter, parameter, "F32", False, 0, shape.numel(), lambda: torch.zeros(shape), reason
    )


def _one(path: Path, tensor: Tensor, place: _Place, model: PreTrainedModel) -> StoredWeight:
    """Return the weight of a tensor that fills a whole parameter."""
    shape, stored = model.get_parameter(place.parameter).shape, place.place
    turned = _stored_shape(model, place) != tuple(shape)
    rows = None if stored.heads is None else gguf_names.interleaved(tensor.shape[0], stored.heads).argsort()

    def finish(values: torch.Tensor) -> torch.Tensor:
        values = values.T.contiguous() if turned else values.view(shape)
        return values - stored.shift if stored.shift else values

    return _weight(path, tensor, place.parameter, rows, finish)


def _as_read(values: torch.Tensor) -> torch.Tensor:
    return values


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _places(model: PreTrainedModel) -> dict[str, _Place]:
    """Return the places of all tensors that a GGUF file of `model` can hold, by their names there."""
    names = gguf_names.Names(model.config)
    places: dict[str, _Place] = {}
    for parameter, tensor in model.named_parameters():  # a tied head has no place of its own
        for part, place in enumerate(names.places(parameter, _as_matrices(model, parameter, tensor))):
            places.setdefault(place.name, _Place(parameter, place, part))
    return places


def _as_matrices(model: PreTrainedModel, parameter: str, tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter with its matrices as (N outputs, K inputs)."""
    from transformers.pytorch_utils import Conv1D

    shape, owner = tuple(tensor.shape), model.get_submodule(parameter.rpartition(".")[0])
    return shape[::-1] if isinstance(owner, Conv1D) else shape


def _stored_shape(model: PreTrainedModel, place: _Place) -> tuple[int, ...]:
    """Return the shape in which a GGUF file stores what fills `place`."""
    *experts, rows, columns = (1, *_as_matrices(model, place.parameter, model.get_parameter(place.parameter)))
    if not experts:
        return (columns,)
    return (*experts[1:], place.place.count(rows), columns)


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
    quantized = kind not in PLAIN
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
    """Return the values, mapped if their address is aligned for matrix products, otherwise read, so that
    memory never holds both the map and its copy."""
    info = TensorInfo(tensor.type_name, tensor.shape, tensor.nbytes or 0, path.name, tensor.start)
    try:
        values = read_file(path, {tensor.name: info}, align=True)[tensor.name]
    except OSError as error:
        raise InputError(f"{path.name} can no longer be read: {error}.") from error
    return values if rows is None else values[rows]


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

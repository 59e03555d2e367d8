"""Models of transformers' own classes, on the meta device (shapes without memory) or filled from files.

    meta_model     of a checkpoint, whose tensors are compared with the model's; cached
    empty_model    of a config, to be filled by the caller
    assemble       of a checkpoint and its tensors
    fit            the comparison alone, which does not stop at the first difference

`meta_model` loads the shapes of the checkpoint's tensors in the same way as the tensors themselves
(renamings, fused experts, tied weights). So a missing, extra or misshapen weight is found before memory is
allocated, and no weight is silently initialised at random.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError
from qcore.base.transformers_internals import (
    StoredNames,
    from_config,
    meta_stays_meta,
    quiet,
    without_weights,
)
from qcore.models.checkpoint import Checkpoint
from qcore.models.classes import model_class
from qcore.models.config import to_transformers
from qcore.models.mapping import torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_KEPT = 4
_MOST_BUFFERS = 1 << 30  # bytes of computed tables that any model may have
_EXPERT = re.compile(r"(.*\.experts)\.(\d{1,5})\.(.*)")
_cache: OrderedDict[str, PreTrainedModel] = OrderedDict()
_caching = threading.RLock()


def meta_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Return the model of `checkpoint` on the meta device. Names and shapes are those of the model that
    `load` returns. All checkpoints of one digest share it, so do not change it: the digest covers what is
    read here, the config and the headers.

    Raise `InputError` naming a tensor that is missing, extra, or of a shape that contradicts config.json. For
    a model that qcore quantized, return the model before quantization, without this comparison.
    """
    with _caching:
        if checkpoint.digest in _cache:
            _cache.move_to_end(checkpoint.digest)
            return _cache[checkpoint.digest]
        if checkpoint.is_quantized:
            config = to_transformers(checkpoint.config)
            try:
                model = empty_model(config, meta_buffers=True)
            except Exception as error:  # as in `assemble`
                raise _no_match(checkpoint, error) from error
        else:
            model = assemble(checkpoint, _shapes(checkpoint), "meta")
        _cache[checkpoint.digest] = model
        if len(_cache) > _KEPT:
            _cache.popitem(last=False)
        return model


def empty_model(
    config: PretrainedConfig, *, meta_buffers: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Return a new model of `config` whose parameters are on the meta device, in evaluation mode, without
    gradients; in float32 unless `dtype` is given.

    Buffers (such as rotary frequencies) are computed, because files do not hold all of them; with
    `meta_buffers` they are also on the meta device. Raise `InputError` as `check_buffers`.
    """
    import torch

    if not meta_buffers:
        check_buffers(config)
    with quiet(), without_weights(meta_buffers=meta_buffers):
        model = from_config(model_class(config), config, dtype or torch.float32)
    model.tie_weights()
    return _reading_text(model).eval().requires_grad_(False)


def check_buffers(config: PretrainedConfig) -> None:
    """Raise `InputError` if a model of `config` computes tables, such as those of positions, that take more
    than `_MOST_BUFFERS` bytes: the numbers of config.json decide their size, and no file holds them."""
    model = empty_model(config, meta_buffers=True)
    sizes = {name: buffer.nbytes for name, buffer in model.named_buffers()}
    if (total := sum(sizes.values())) > _MOST_BUFFERS:
        raise InputError(
            f"config.json demands {total / 1e9:.1f} GB of computed tables, such as "
            f"{max(sizes, key=sizes.__getitem__)}, but models have at most {_MOST_BUFFERS / 1e9:.1f} GB. Its "
            "numbers, such as the largest position, are not those of a model."
        )


def assemble(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], device: str) -> PreTrainedModel:
    """Return a new fp32 model on `device` with `tensors` (name in the files -> tensor), in evaluation mode,
    without gradients. Towers of a wrapper keep the 16 bits of the files, because no text runs through them.

    Tensors that are not converted are used on a CPU without a copy, so memory-mapped ones stay mapped. Raise
    `InputError` as `meta_model` does.
    """
    import torch

    config = to_transformers(checkpoint.config)
    try:
        model, report = _load(config, tensors, device)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # model classes may raise anything for an invalid config, assertions included
        raise _no_match(checkpoint, error) from error
    _check(checkpoint, model, report)
    _keep_towers(model, tensors)
    return model.eval().requires_grad_(False)


def _no_match(checkpoint: Checkpoint, error: Exception) -> InputError:
    """Return the error for a model class that rejects the config of `checkpoint`."""
    why = _odd_expert(checkpoint) or _why(error, checkpoint.config)
    return InputError(f"{checkpoint.name} does not match its config.json: {why}")


def _keep_towers(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of towers that the files hold in 16 bits, in the model's layout, back into `model`."""
    from qcore.layers.text_part import text_part

    part = text_part(model)
    if not part.towers:
        return
    names = StoredNames(model)
    for stored, tensor in tensors.items():
        place = names.place(stored) if tensor.is_floating_point() and tensor.itemsize == 2 else None
        if place is not None and place[2] is None and part.tower_of(place[0]):
            owner, _, last = place[0].rpartition(".")
            own = getattr(model.get_submodule(owner), last)
            own.data = tensor.to(own.device)


@dataclass(frozen=True)
class Fit:
    """The comparison of stored tensors with the `model` of a config, on the meta device: names of parameters
    that no tensor fills, names of tensors without a place, and (name, stored shape, the model's shape)."""

    model: PreTrainedModel
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def fit(config: dict, shapes: Mapping[str, tuple[int, ...]]) -> Fit:
    """Return how float tensors of these `shapes`, by stored name, fit the model of the checked `config`.
    Raise `InputError` if the architecture is not known, or the loading library cannot load such shapes."""
    import torch

    checked = to_transformers(config)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        model, report = _load(checked, tensors, "meta")
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # as in `assemble`
        raise InputError(f"The tensors do not match config.json: {_last_line(error)}") from error
    mismatched = sorted(report["mismatched_keys"], key=str)
    return Fit(
        model,
        tuple(sorted(report["missing_keys"])),
        tuple(sorted(report["unexpected_keys"])),
        tuple((name, tuple(stored), tuple(wanted)) for name, stored, wanted, *_ in mismatched),
    )


def _load(
    config: PretrainedConfig, tensors: dict[str, torch.Tensor], device: str
) -> tuple[PreTrainedModel, dict]:
    """Return the model of `config` with `tensors`, and the library's report of the differences."""
    import torch

    check_buffers(config)
    chosen: Any = model_class(config)
    with quiet(), meta_stays_meta():
        model, report = chosen.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            device_map=None if device == "cpu" else {"": device},
            ignore_mismatched_sizes=True,  # so that mismatches are reported by name
            output_loading_info=True,
        )
    return _reading_text(model), report


def _reading_text(model: PreTrainedModel) -> PreTrainedModel:
    """Let a wrapper around a whole causal language model pass calls on to that model. The wrapper's own
    forward may require an image, as that of Llama 4 does in transformers 5.24."""
    from qcore.layers.stand_in import stand_in
    from qcore.layers.text_part import causal_model

    if (inner := causal_model(model)) is not None:
        stand_in(model, inner.forward)
    return model


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    import torch

    return {
        name: torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device="meta")
        for name, tensor in checkpoint.tensors.items()
    }


def _check(checkpoint: Checkpoint, model: PreTrainedModel, report: dict) -> None:
    where = f"{checkpoint.name} does not match its config.json:"
    if mismatched := sorted(report["mismatched_keys"], key=str):
        name, stored, expected = mismatched[0][:3]
        raise InputError(
            f"{where} {name} has the shape {tuple(stored)}, expected {tuple(expected)}.{_more(mismatched)}"
        )
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{where} the weights of {missing[0]} are missing.{_more(missing)} Missing weights are never "
            "initialised at random."
        )
    if extra := _inside(model, sorted(report["unexpected_keys"])):
        raise InputError(f"{where} the tensor {extra[0]} is not part of the model.{_more(extra)}")
    if report["error_msgs"]:
        raise InputError(f"{where} {_last_line(report['error_msgs'][0])}")


def _inside(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Return those of `names` that begin like the name of one of the model's modules. The model has a place
    for none of `names`; the others belong to heads and encoders beside it (see `unread.py`)."""
    own = {name for part in (model, model.base_model) for name, _ in part.named_children()}
    return [name for name in names if name.partition(".")[0] in own]


def _odd_expert(checkpoint: Checkpoint) -> str | None:
    """Return the error for the expert that does not fit. Experts are stored one by one and loaded as one
    tensor, so the library does not name it."""
    families: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    for name, tensor in checkpoint.tensors.items():
        if match := _EXPERT.fullmatch(name):
            families.setdefault((match[1], match[3]), {})[int(match[2])] = tensor.shape
    counts = {
        prefix: max(max(members) for (other, _), members in families.items() if other == prefix)
        for prefix, _ in families
    }
    for (prefix, suffix), members in families.items():
        for number in range(counts[prefix] + 1):
            if number not in members:
                return (
                    f"the weights of {prefix}.{number}.{suffix} are missing. Missing weights are never "
                    "initialised at random."
                )
            if members[number] != members[0]:
                return (
                    f"{prefix}.{number}.{suffix} has the shape {members[number]}, but the first expert has "
                    f"{members[0]}."
                )
    return None


def _more(names: list) -> str:
    return f" (And {len(names) - 1} more.)" if len(names) > 1 else ""


def _why(error: Exception, config: dict) -> str:
    """Return why a model class rejects `config`."""
    if isinstance(error, KeyError):  # of a table, such as that of activations
        return f"it names {error.args[0]!r}, which transformers does not know"
    if "padding_idx" in str(error).lower():
        return (
            f"pad_token_id is {config.get('pad_token_id')!r}, which is not one of the "
            f"{config.get('vocab_size')} tokens"
        )
    return _last_line(error)


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

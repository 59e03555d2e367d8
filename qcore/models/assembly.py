"""The model without its weights: the library's own classes on the "meta" device, where a tensor has a shape
but no memory.

The checkpoint's tensors, as shapes, are put through the very loading that the real ones will go through
(renamings, experts fused into one tensor, tied weights), so a weight that is missing, left over or of another
shape is found before memory is taken, and none is ever initialised at random without a word.
"""

import logging
import re
import threading
from collections import OrderedDict
from contextlib import contextmanager

from qcore.base.errors import InputError
from qcore.models.checkpoint import Checkpoint
from qcore.models.config import to_transformers
from qcore.models.mapping import torch_dtype

_KEPT = 4
_EXPERT = re.compile(r"(.*\.experts)\.(\d{1,5})\.(.*)")
_cache: OrderedDict[str, object] = OrderedDict()
building = (
    threading.RLock()
)  # transformers sets process-wide defaults (dtype, initialisation) while it builds a model


def skeleton(checkpoint: Checkpoint):
    """The model of `checkpoint` on the meta device, cached: look, do not change. Names and shapes are those
    `load` will give.

    Raises `InputError` naming the tensor that is missing, left over, or of a shape that contradicts
    config.json. For a model that qcore quantized, the skeleton is that of the unquantized model, and the
    weights are not compared.
    """
    with building:
        if checkpoint.digest in _cache:
            _cache.move_to_end(checkpoint.digest)
            return _cache[checkpoint.digest]
        model = (
            unfilled(checkpoint)
            if checkpoint.is_quantized
            else assemble(checkpoint, _shapes(checkpoint), "meta")
        )
        _cache[checkpoint.digest] = model
        if len(_cache) > _KEPT:
            _cache.popitem(last=False)
        return model


def assemble(checkpoint: Checkpoint, tensors: dict, device: str):
    """Put `tensors` (name in the files -> torch tensor) into a new fp32 model on `device`, in evaluation
    mode, without gradients.

    fp32 tensors on a CPU are taken as they are, so that mapped ones stay mapped. Raises `InputError` as
    `skeleton` does.
    """
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = to_transformers(checkpoint.config)
    with building, quiet():
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if isinstance(model_class, tuple | list):
            model_class = model_class[0]
        try:
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                device_map=None if device == "cpu" else {"": device},
                ignore_mismatched_sizes=True,  # to have them reported with names; any is refused below
                output_loading_info=True,
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (
            Exception
        ) as error:  # model classes check their config with whatever they like, assertions included
            why = _odd_expert(checkpoint) or _last_line(error)
            raise InputError(f"{checkpoint.name} is not what its config.json says: {why}") from error
    _check(checkpoint, report)
    return model.eval().requires_grad_(False)


def _shapes(checkpoint: Checkpoint) -> dict:
    import torch

    return {
        name: torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device="meta")
        for name, tensor in checkpoint.tensors.items()
    }


def unfilled(checkpoint: Checkpoint):
    import torch
    from transformers import AutoModelForCausalLM

    config = to_transformers(checkpoint.config)
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _check(checkpoint: Checkpoint, report: dict) -> None:
    where = f"{checkpoint.name} is not what its config.json says:"
    if mismatched := sorted(report["mismatched_keys"], key=str):
        name, stored, expected = mismatched[0][:3]
        raise InputError(
            f"{where} {name} has the shape {tuple(stored)} and should have {tuple(expected)}.{_more(mismatched)}"
        )
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{where} no weights for {missing[0]}.{_more(missing)} Nothing is filled in at random."
        )
    if extra := sorted(report["unexpected_keys"]):
        raise InputError(f"{where} the tensor {extra[0]} has no place in the model.{_more(extra)}")
    if report["error_msgs"]:
        raise InputError(f"{where} {_last_line(report['error_msgs'][0])}")


def _odd_expert(checkpoint: Checkpoint) -> str | None:
    """Experts are stored one by one and loaded as one tensor, so the library cannot say which one did not
    fit: find it by name."""
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
                return f"no weights for {prefix}.{number}.{suffix}. Nothing is filled in at random."
            if members[number] != members[0]:
                return f"{prefix}.{number}.{suffix} has the shape {members[number]}, the first expert {members[0]}."
    return None


def _more(names: list) -> str:
    return f" ({len(names) - 1} more like it.)" if len(names) > 1 else ""


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def quiet():
    """No progress bar and no table of loading problems: they are reported as one sentence by us."""
    from transformers.utils import logging as library

    logger = logging.getLogger("transformers")
    level, bar = logger.level, library.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bar:
            library.enable_progress_bar()

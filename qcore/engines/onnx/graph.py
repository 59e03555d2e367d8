"""A model as a graph, by PyTorch's exporter: traced once with symbolic lengths, so that one file serves
prefill and decode.

The exporter folds constants, and names weights after their modules. Positions follow from the length of the
cache, the causal mask is part of the graph, and only the positions `logits_at` pass the output head.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.engines.onnx.traced import trace
from qcore.layers.experts import expert_layouts
from qcore.layers.modules import FusedWeight
from qcore.runtime import detach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE, DATA = "model.onnx", "model.onnx.data"
OPSET = 18
_TOKENS, _PAST, _ROWS = (
    4,
    3,
    2,
)  # example lengths, distinct and above 1, so that the tracer keeps them symbolic


class _Step(nn.Module):
    """The traced call, with the cache as plain tensors: token ids, positions of the logits, keys and
    values."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.traced = model

    def forward(self, input_ids, logits_at, *past):
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found = self.traced(input_ids=input_ids, cache=cache, use_cache=True, logits_to_keep=logits_at)
        layers: list[Any] = cache.layers
        present = [part for layer in layers for part in (layer.keys, layer.values)]
        return (found.logits, *present)


def export(model: PreTrainedModel, folder: Path) -> Path:
    """Write `model` (fp32, or with qcore's own quantized layers) to model.onnx and model.onnx.data in
    `folder`, and return the path of model.onnx. The model is consumed: its layers are replaced by those of
    `traced.py`.

    Raise `InputError` with the exporter's reason for an architecture that it cannot trace, or a layer without
    an ONNX form.
    """
    reason = unsupported(model)
    if reason:
        raise InputError(reason)
    detach(model)  # the native step cannot be traced
    past = _example_cache(model)
    trace(model)
    model.set_attn_implementation("sdpa")
    step = _Step(model).eval()
    ids = torch.zeros(_ROWS, _TOKENS, dtype=torch.int64)
    rows, tokens, held, wanted = (torch.export.Dim(name) for name in ("batch", "tokens", "past", "wanted"))
    shapes = (
        {0: rows, 1: tokens},
        {0: wanted},
        tuple({0: rows, 2: held} for _ in past),
    )  # one symbol for all layers, which is faster to trace
    inputs, outputs = names(len(past) // 2)
    try:
        with torch.no_grad(), _silence():
            program = torch.onnx.export(
                step,
                (ids, torch.tensor([1, 3]), *past),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                optimize=True,
            )
    except Exception as error:  # the exporter raises errors of many classes of its own, each with the reason
        raise InputError(
            f"{type(model).__name__} cannot be exported to ONNX: {_first_line(error)}"
        ) from error
    if program is None:
        raise InputError(f"{type(model).__name__} cannot be exported to ONNX: the exporter gave no graph.")
    _tidy(program.model)
    program.save(folder / FILE, external_data=True)
    return folder / FILE


def unsupported(model: PreTrainedModel) -> str | None:
    """Return the reason why `model` cannot be exported, if that is known before the export, or None."""
    if expert_layouts(model) or any(isinstance(module, FusedWeight) for module in model.modules()):
        return (
            f"{type(model).__name__} is a mixture of experts, which cannot be exported to ONNX: "
            "its experts are selected at run time."
        )
    return None


def names(layers: int) -> tuple[list[str], list[str]]:
    """Return the names of the graph's inputs and outputs for a number of `layers`."""
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return ["input_ids", "logits_at", *(f"past.{part}" for part in parts)], [
        "logits",
        *(f"present.{part}" for part in parts),
    ]


@torch.no_grad()
def _example_cache(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return keys and values (B, heads, P, size) of each layer for a few tokens. Raise `InputError` for a
    cache of another kind."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    model(input_ids=torch.zeros(_ROWS, _PAST, dtype=torch.int64), cache=cache, use_cache=True)
    parts: list[Any] = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
    if not parts or any(
        not isinstance(part, torch.Tensor) or part.shape[:1] + part.shape[2:3] != (_ROWS, _PAST)
        for part in parts
    ):
        raise InputError(
            f"{type(model).__name__} cannot be exported to ONNX: "
            "its cache does not hold keys and values per token."
        )
    return parts


def _tidy(model: Any) -> None:
    """Give weights their names in the model, merge copies of tied weights, and remove metadata about the
    export."""
    graph = model.graph
    seen: dict[tuple, Any] = {}
    for thing in (
        model,
        graph,
        *graph,
        *(value for node in graph for value in node.outputs),
        *graph.initializers.values(),
    ):
        thing.metadata_props.clear()
    for value in list(graph.initializers.values()):
        plain = value.name.removeprefix("traced.")
        array = value.const_value
        key = (
            (getattr(getattr(array, "raw", None), "data_ptr", lambda: 0)(), tuple(array.shape))
            if array.size > 1
            else (0, ())
        )
        twin = seen.get(key) if key[0] else None
        if twin is not None:
            value.replace_all_uses_with(twin)
            graph.initializers.pop(value.name)
            continue
        seen[key] = value
        if plain != value.name:
            graph.initializers.pop(value.name)
            value.name = plain
            graph.initializers[plain] = value


@contextlib.contextmanager
def _silence():
    """Suppress the exporter's progress, which it reports by logging, warnings and print."""
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        loud.setLevel(level)


def _first_line(error: Exception) -> str:
    reason: BaseException = error
    while reason.__cause__ is not None:  # the innermost one names the operator
        reason = reason.__cause__
    text = str(reason).strip().splitlines()
    return f"{type(reason).__name__}: {text[0][:300]}" if text else type(reason).__name__

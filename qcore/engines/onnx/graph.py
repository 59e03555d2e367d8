"""A model as a graph, by PyTorch's exporter: traced once with symbolic lengths, so that one file serves
prefill and decode.

The exporter folds what does not depend on the inputs, and names weights after their modules. Positions are
counted from the length of the cache, the causal mask is part of the graph, and only the positions in
`logits_at` go through the output head.
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
from qcore.runtime import detach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE, DATA = "model.onnx", "model.onnx.data"
OPSET = 18
_TOKENS, _PAST, _ROWS = (
    4,
    3,
    2,
)  # example lengths, all different and above 1, so that the tracer keeps them symbolic


class _Step(nn.Module):
    """The call that is traced: tokens, which logits, and the cache as plain tensors."""

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
    `folder`. The model is used up: its layers are exchanged for those of `traced.py`.

    Raises `InputError` with the exporter's reason for an architecture that it cannot trace, or a layer that
    ONNX has no form for.
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
    )  # one symbol for all layers: traced sooner
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
    except (
        Exception
    ) as error:  # the exporter raises errors of many classes of its own, all of them saying why
        raise InputError(
            f"{type(model).__name__} cannot be exported to ONNX: {_first_line(error)}"
        ) from error
    if program is None:
        raise InputError(f"{type(model).__name__} cannot be exported to ONNX: the exporter gave no graph.")
    _tidy(program.model)
    program.save(folder / FILE, external_data=True)
    return folder / FILE


def unsupported(model: PreTrainedModel) -> str | None:
    """Why `model` cannot be exported, as far as that is known beforehand, or None."""
    if any(
        hasattr(module, "is_transposed") or type(module).__name__ == "QuantExperts"
        for module in model.modules()
    ):
        return f"{type(model).__name__} is a mixture of experts, which cannot be exported to ONNX: its experts are chosen while it runs."
    return None


def names(layers: int) -> tuple[list[str], list[str]]:
    """The names of the graph's inputs and outputs for so many layers."""
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return ["input_ids", "logits_at", *(f"past.{part}" for part in parts)], [
        "logits",
        *(f"present.{part}" for part in parts),
    ]


@torch.no_grad()
def _example_cache(model: PreTrainedModel) -> list[torch.Tensor]:
    """Keys and values (B, heads, P, size) of each layer for a few tokens. Raises `InputError` for a cache of
    another kind."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    model(input_ids=torch.zeros(_ROWS, _PAST, dtype=torch.int64), cache=cache, use_cache=True)
    parts: list[Any] = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
    if not parts or any(
        not isinstance(part, torch.Tensor) or part.shape[:1] + part.shape[2:3] != (_ROWS, _PAST)
        for part in parts
    ):
        raise InputError(
            f"{type(model).__name__} cannot be exported to ONNX: its cache is not one of keys and values for each token."
        )
    return parts


def _tidy(model: Any) -> None:
    """Weights under their names in the model; one copy of what several modules share; no traces of where and
    how it was exported."""
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
    """The exporter talks about its own progress on several channels."""
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

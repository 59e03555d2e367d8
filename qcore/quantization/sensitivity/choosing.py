"""From a recipe with a budget to a format per layer: find or compute the sensitivities, solve, and record the
choice.

The loss of a choice is the sum of its layers' predicted losses, each with only that layer quantized. The run
measures how close this sum is to the divergence of the finished model.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcore.base.progress import Progress
from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.layers.inventory import inventory
from qcore.layers.select import Target
from qcore.quantization.calibration import Calibration
from qcore.quantization.sensitivity.allocation import frontier
from qcore.quantization.sensitivity.gradients import SAMPLES
from qcore.quantization.sensitivity.proxy import TOKENS, predict, split
from qcore.quantization.sensitivity.store import TableStore
from qcore.quantization.sensitivity.table import Layer, Sensitivities
from qcore.quantization.sensitivity.within import costs_of, solve_within
from qcore.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POINTS = 120  # points of the frontier in a record, at most


@dataclass(frozen=True)
class Chosen:
    """`formats` by target's name, and the JSON-ready `record`: budget, candidates, prediction, bound, and the
    frontier as [bits per weight, predicted nats per token]."""

    formats: dict[str, Format]
    record: dict

    @property
    def digest(self) -> str:
        """A hash that identifies this choice."""
        named = "\n".join(f"{name} {format.label}" for name, format in sorted(self.formats.items()))
        return hashlib.sha256(named.encode()).hexdigest()[:16]


def choose_formats(
    model: PreTrainedModel,
    recipe: Recipe,
    targets: list[Target],
    calibration: Calibration,
    report: Progress,
    identity: str | None = None,
    stamp: str | None = None,
) -> Chosen:
    """Return the formats of those `targets` whose format is the recipe's `Budget`. Sensitivities are stored
    under `identity` and `stamp`, which identify this model and the state of its files (see `Checkpoint`).

    Raise `InputError` if no choice is within the budget; the message names the nearest possible budget.
    """
    budget = recipe.weights
    if not isinstance(budget, Budget):
        raise ValueError(f"{recipe.name} has no budget to spend")
    open_ = [target for target in targets if target.format == budget]
    table, store = find_or_predict(
        model,
        open_,
        budget.candidates,
        recipe.method,
        calibration,
        report,
        identity=identity,
        stamp=stamp,
        prepare=recipe.prepare,
    )
    twins = {name for name, _, shared in inventory(model) if shared}
    rows = {layer.name: layer for layer in table.layers}
    unseen = [target for target in open_ if target.name not in rows]
    fixed_bytes = sum(
        _bytes(model, target, budget)
        for target in targets
        if target.name not in rows and target.name not in twins
    )
    weights = sum(_weights(model, target) for target in targets if target.name not in twins)
    names = {target.name for target in targets}
    kept = sum(tensor.nbytes for name, tensor, shared in inventory(model) if not shared and name not in names)
    found = solve_within(budget, table.layers, fixed_bytes, weights, kept)
    chosen = {layer.name: budget.candidates[k] for layer, k in zip(table.layers, found.options, strict=True)}
    chosen |= {target.name: budget.largest for target in unseen}
    formats = {
        target.name: chosen[target.name].for_columns(target.shape(model)[2])
        for target in targets
        if target.name in chosen
    }
    labels = [format.label for format in budget.candidates]
    bits = (
        8
        * (fixed_bytes + sum(layer.nbytes[k] for layer, k in zip(table.layers, found.options, strict=True)))
        / weights
    )
    predicted = sum(layer.loss[k] for layer, k in zip(table.layers, found.options, strict=True))
    record = {
        "budget": {"amount": budget.amount, "unit": budget.unit},
        "candidates": labels,
        "method": recipe.method,
        "sensitivities": store and store.key,
        "measure": table.conditions,
        "predicted_kl": predicted,
        "bits_per_weight": bits,
        "exact": found.exact,
        "bound": found.bound,
        "layers_by_format": dict(Counter(formats[name].label for name in formats)),
        "frontier": _thinned(
            [
                [8 * (fixed_bytes + cost) / weights, loss]
                for cost, loss, _ in frontier(*costs_of(table.layers))
            ]
        ),
        "single": {label: _single(table.layers, k, fixed_bytes, weights) for k, label in enumerate(labels)},
    }
    return Chosen(formats, record)


def find_or_predict(
    model: PreTrainedModel,
    targets: list[Target],
    candidates: tuple[Format, ...],
    method: str,
    calibration: Calibration,
    report: Progress,
    *,
    identity: str | None,
    stamp: str | None = None,
    prepare: str = "none",
    about: dict | None = None,
    tokens: int = TOKENS,
) -> tuple[Sensitivities, TableStore | None]:
    """Return the table of `targets` for the `candidates`, and its store (None without an `identity`, which
    with `stamp` identifies this model and the state of its files). The loss is predicted on `tokens` tokens
    of the `calibration`. `about` adds entries to the table's conditions, such as the model's name."""
    loss, given = split(calibration, method, tokens)
    conditions = {
        "digest": identity,
        "method": method,
        "prepare": prepare,
        "text": {"name": calibration.name, "sha256": calibration.sha256},
        "tokens": loss.ids.numel(),
        "hessian_tokens": 0 if given is None else given.ids.numel(),
        "window": loss.ids.shape[1],
        "samples": SAMPLES,
    }
    read = [loss.ids.tolist(), None if given is None else given.ids.tolist()]
    ids = hashlib.sha256(json.dumps(read).encode()).hexdigest()
    decides = {
        "formats": [str(each) for each in candidates],
        "ids": ids,
        "layers": [target.name for target in targets],
    }
    if stamp is not None:
        decides["stamp"] = stamp
    store = None if identity is None else TableStore(conditions | decides)
    table = store.read() if store else None
    if table is None:
        began = time.perf_counter()
        layers = predict(model, targets, list(candidates), method, loss, report, given)
        spent = {"seconds": time.perf_counter() - began, "made_at": time.time()}
        table = Sensitivities(candidates, tuple(layers), conditions | spent | (about or {}))
        if store:
            store.write(table)
    return table, store


def _single(layers: tuple[Layer, ...], k: int, fixed_bytes: int, weights: int) -> list[float]:
    """Return [bits per weight, predicted nats per token] with every layer in candidate k."""
    return [
        8 * (fixed_bytes + sum(layer.nbytes[k] for layer in layers)) / weights,
        sum(layer.loss[k] for layer in layers),
    ]


def _thinned(points: list) -> list:
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _weights(model: PreTrainedModel, target: Target) -> int:
    return target.weight(model).numel()


def _bytes(model: PreTrainedModel, target: Target, budget: Budget) -> int:
    """Return the bytes of a target without sensitivities: in its own format, or in the largest candidate."""
    count, rows, columns = target.shape(model)
    format = budget.largest if target.format == budget else target.format
    return count * format.for_columns(columns).nbytes(rows, columns)

"""Stored weights of another project's folder, in their places in a transformers model.

transformers renames tensors and joins experts when it loads a model. The same rules are applied here to
weights that have not been read: experts that are stored one by one become the rows of one parameter, with
their codes. A rule of another kind needs values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from qcore.base.errors import InputError
from qcore.base.transformers_internals import (
    StoredNames,
    apply_rule,
    rule_targets,
    stacks_experts,
    stored_order,
)
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.experts import expert_layouts
from qcore.models.stored import StoredWeight, Widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Read = Callable[[], QuantizedTensor | Widened | torch.Tensor]


@dataclass(frozen=True)
class Unplaced:
    """A weight with the name that it has in an ordinary checkpoint; other fields as in `StoredWeight`."""

    name: str
    kind: str
    quantized: bool
    nbytes: int
    read: Read
    reason: str | None = None


class Places:
    """The places in `model`, which may be on the meta device, for weights of the model called `name`."""

    def __init__(self, name: str, model: PreTrainedModel):
        self._name, self._model = name, model
        self._rules, self._layouts = StoredNames(model), expert_layouts(model)
        self._counts = {
            parameter: tensor.numel() for parameter, tensor in model.named_parameters(remove_duplicate=False)
        }

    def __call__(self, weights: list[Unplaced]) -> list[StoredWeight]:
        """Return the weights in their places. Weights that the model's class ignores are left out. Raise
        `InputError` for any other weight without a place."""
        placed: list[StoredWeight] = []
        ruled: dict[str, tuple[Any, dict[str, list[Unplaced]]]] = {}
        for each in sorted(weights, key=lambda each: stored_order(each.name)):
            found = self._rules.place(each.name)
            if found is None:
                self._check_ignored(each.name)
                continue
            parameter, pattern, rule = found
            if rule is None:
                placed.append(self._placed(each, parameter))
            else:
                ruled.setdefault(parameter, (rule, {}))[1].setdefault(pattern or "", []).append(each)
        for parameter, (rule, members) in ruled.items():
            placed += self._joined(parameter, rule, members)
        return placed

    def _check_ignored(self, name: str) -> None:
        if not self._rules.ignores(name):
            raise InputError(
                f"{self._name} does not match its config.json: the tensor {name} is not part of a "
                f"{self._model.config.model_type} model."
            )

    def _placed(
        self, weight: Unplaced, parameter: str, *, expert: int | None = None, part: int = 0, pieces: int = 1
    ) -> StoredWeight:
        return StoredWeight(
            weight.name,
            parameter,
            weight.kind,
            weight.quantized,
            weight.nbytes,
            self._counts.get(parameter, 0) // pieces,
            weight.read,
            weight.reason,
            expert,
            part,
        )

    def _joined(
        self, parameter: str, rule: Any, members: Mapping[str, list[Unplaced]]
    ) -> Iterator[StoredWeight]:
        """Return the weights that `rule` joins: experts one by one, or the rule's result as a whole."""
        every = [each for joined in members.values() for each in joined]
        quantized = any(each.quantized for each in every)
        if quantized and stacks_experts(rule) and not self._layouts.get(parameter, False):
            for part, pattern in enumerate(rule.source_patterns):
                experts = members.get(pattern, [])
                for expert, each in enumerate(experts):
                    pieces = len(experts) * len(rule.source_patterns)
                    yield self._placed(each, parameter, expert=expert, part=part, pieces=pieces)
            return
        for target in rule_targets(rule, parameter):
            whole = Unplaced(
                every[0].name,
                " + ".join(dict.fromkeys(each.kind for each in every)),
                quantized,
                sum(each.nbytes for each in every) if target == parameter else 0,
                partial(self._apply, parameter, target, rule, members),
                "Dequantized to fp32: the model joins several weights into one." if quantized else None,
            )
            yield self._placed(whole, target)

    def _apply(
        self, first: str, target: str, rule: Any, members: Mapping[str, list[Unplaced]]
    ) -> torch.Tensor:
        tensors = {
            pattern: [(each.name, _values(each.read())) for each in joined]
            for pattern, joined in members.items()
        }
        return apply_rule(rule, first, tensors, self._model)[target]


def _values(found: QuantizedTensor | Widened | torch.Tensor) -> torch.Tensor:
    if isinstance(found, Widened):
        return found.values
    return found if isinstance(found, torch.Tensor) else found.dequantize()

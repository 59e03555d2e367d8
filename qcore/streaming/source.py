"""Reads the parameters of a model from the checkpoint's files, one at a time.

Names and shapes in the files can differ from the model's: names change, three projections are stored as one,
experts are stored one by one and computed as one tensor. transformers applies conversion rules when it loads
a whole model; here the same rules are applied to the few stored tensors of one parameter. A parameter without
a rule stays mapped in its stored dtype: it takes memory only while it is read, and is released with the
tensor.
"""

from __future__ import annotations

import os
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.transformers_internals import (
    StoredNames,
    apply_rule,
    rule_targets,
    stacks_experts,
    stored_order,
)
from qcore.library.finite import require_finite
from qcore.library.loading import set_generation_config
from qcore.models import Checkpoint, meta_model
from qcore.models.mapping import read_tensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass
class _Conversion:
    """The origin of a parameter: transformers' conversion `rule`, if any, and the names of its stored tensors
    by the rule's patterns."""

    rule: object | None = None
    stored: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [name for names in self.stored.values() for name in names]


class Source:
    """Parameters of `checkpoint` by their names in the model."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.model = meta_model(checkpoint)
        self._made: dict[str, _Conversion] = {}
        self._targets: dict[
            str, str
        ] = {}  # parameter -> the parameter under which its rule is kept (a rule may produce several)
        self._last: tuple[str, dict[str, torch.Tensor]] | None = None
        self._read_rules()
        self._add_ties()

    def read(self, name: str) -> torch.Tensor:
        """Return the parameter in the model's shape: mapped from the file, or computed by its rule."""
        first = self._targets[name]
        made = self._made[first]
        if made.rule is None:
            return self._stored(made.names[0])
        if self._last is None or self._last[0] != first:
            self._last = None  # release the old result before the new one is computed
            self._last = (
                first,
                self._convert(first, {pattern: list(names) for pattern, names in made.stored.items()}),
            )
        return self._last[1][name]

    def expert(self, name: str, number: int) -> torch.Tensor:
        """Return the matrix `number` of the fused experts' parameter `name` (E, …), without computing the
        others if experts are stored one by one."""
        first = self._targets[name]
        made = self._made[first]
        if _apart(made, self.model.get_parameter(name).shape[0]):
            return self._convert(first, {pattern: [names[number]] for pattern, names in made.stored.items()})[
                name
            ][0]
        return self.read(name)[number]

    def stored_names(self, name: str, expert: int | None = None) -> list[str]:
        """Return the names of the stored tensors of the parameter (or of its matrix number `expert`)."""
        made = self._made[self._targets[name]]
        if expert is not None and _apart(made, self.model.get_parameter(name).shape[0]):
            return [names[expert] for names in made.stored.values()]
        return made.names

    def check_finite(self, name: str, expert: int | None = None) -> None:
        """Raise `InputError` naming the first NaN or infinity among the stored tensors of a parameter."""
        for stored in self.stored_names(name, expert):
            require_finite(stored, read_tensor(self.checkpoint, stored))

    def expect(self, name: str, expert: int | None = None) -> None:
        """Tell the system to read the parameter's bytes from the disk in advance."""
        if not hasattr(os, "posix_fadvise"):
            return
        for stored in self.stored_names(name, expert):
            tensor = self.checkpoint.tensors[stored]
            with (self.checkpoint.folder / tensor.file).open("rb") as file:
                os.posix_fadvise(file.fileno(), tensor.start, tensor.nbytes, os.POSIX_FADV_WILLNEED)

    def described(self) -> PreTrainedModel:
        """Return the model without weights, with the checkpoint's own generation config: what a saved
        folder's config files are written from."""
        model = copy(self.model)  # the meta model itself is shared and must not change
        model.config = deepcopy(model.config)
        set_generation_config(model, self.checkpoint.folder)
        return model

    def forget(self) -> None:
        """Release the result of the last rule."""
        self._last = None

    def _stored(self, stored: str) -> torch.Tensor:
        import torch

        tensor = read_tensor(self.checkpoint, stored)
        return tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor

    def _convert(self, first: str, stored: dict[str, list[str]]) -> dict[str, torch.Tensor]:
        tensors = {
            pattern: [(name, self._stored(name)) for name in names] for pattern, names in stored.items()
        }
        return apply_rule(self._made[first].rule, first, tensors, self.model)

    def _read_rules(self) -> None:
        """Assign the stored names to their parameters, as transformers does when it loads a model."""
        rules = StoredNames(self.model)
        for stored in sorted(self.checkpoint.tensors, key=stored_order):
            if (found := rules.place(stored)) is None:
                continue  # ignored by the model's class; otherwise `meta_model` would have raised
            name, pattern, rule = found
            made = self._made.setdefault(name, _Conversion(rule))
            made.stored.setdefault(pattern or stored, []).append(stored)
        for first, made in self._made.items():
            for name in [first] if made.rule is None else rule_targets(made.rule, first):
                self._targets.setdefault(name, first)

    def _add_ties(self) -> None:
        """Add the other names of tied parameters, which are stored under one of their names."""
        import torch

        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for family in names.values():
            known = [name for name in family if name in self._targets]
            if not known:
                raise InputError(
                    f"{self.checkpoint.name} has no weights for {family[0]}. Missing weights are never "
                    "initialised at random."
                )
            for other in known[1:]:
                if self._targets[other] != self._targets[known[0]] and not torch.equal(
                    self.read(known[0]), self.read(other)
                ):
                    raise InputError(
                        f"{self.checkpoint.name} stores {known[0]} and {other} with different values, but "
                        "its config.json ties them. Correct tie_word_embeddings there, or load the whole "
                        "model."
                    )
            for name in family:
                self._targets.setdefault(name, self._targets[known[0]])


def _apart(made: _Conversion, experts: int) -> bool:
    """Return whether the experts are stored one by one and each can be computed without the others."""
    return (
        made.rule is not None
        and stacks_experts(made.rule)
        and all(len(names) == experts for names in made.stored.values())
    )

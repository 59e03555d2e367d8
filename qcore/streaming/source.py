"""Each parameter of a model straight from the checkpoint's files, one at a time.

Files and model do not always agree on names and shapes: names are changed, three projections are stored as
one, experts are stored one by one and computed as one tensor. transformers has rules for that, which it
applies while it loads a whole model; here the same rules are applied to the few stored tensors that one
parameter is made of. What needs no rule stays mapped and in its stored dtype: it takes memory only while it
is read, and goes with the tensor.
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
from qcore.library.loading import require_finite, set_generation_config
from qcore.models import Checkpoint, meta_model
from qcore.models.mapping import read_tensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass
class _Conversion:
    """How a parameter is made: transformers' conversion `rule`, if it takes one, and the names of the stored
    tensors by the pattern under which the rule knows them."""

    rule: object | None = None
    stored: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [name for names in self.stored.values() for name in names]


class Source:
    """Parameters of `checkpoint` by the names they have in the model."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.model = meta_model(checkpoint)
        self._made: dict[str, _Conversion] = {}
        self._targets: dict[
            str, str
        ] = {}  # parameter -> the one under which its rule is kept (a rule may make several)
        self._last: tuple[str, dict[str, torch.Tensor]] | None = None
        self._read_rules()
        self._add_ties()

    def read(self, name: str) -> torch.Tensor:
        """Return the parameter in the shape that the model has it in. Mapped from the file, or made anew if
        it takes a rule."""
        first = self._targets[name]
        made = self._made[first]
        if made.rule is None:
            return self._stored(made.names[0])
        if self._last is None or self._last[0] != first:
            self._last = None  # let go of the old one before the new one is made
            self._last = (
                first,
                self._convert(first, {pattern: list(names) for pattern, names in made.stored.items()}),
            )
        return self._last[1][name]

    def expert(self, name: str, number: int) -> torch.Tensor:
        """Return the matrix `number` of the fused experts' parameter `name` (E, …), made without the others
        where they are stored apart."""
        first = self._targets[name]
        made = self._made[first]
        if _apart(made, self.model.get_parameter(name).shape[0]):
            return self._convert(first, {pattern: [names[number]] for pattern, names in made.stored.items()})[
                name
            ][0]
        return self.read(name)[number]

    def stored_names(self, name: str, expert: int | None = None) -> list[str]:
        """Return the stored tensors that the parameter (or its matrix number `expert`) is made of."""
        made = self._made[self._targets[name]]
        if expert is not None and _apart(made, self.model.get_parameter(name).shape[0]):
            return [names[expert] for names in made.stored.values()]
        return made.names

    def check_finite(self, name: str, expert: int | None = None) -> None:
        """Raise `InputError` naming the first NaN or infinity among the stored tensors of a parameter."""
        for stored in self.stored_names(name, expert):
            require_finite(stored, read_tensor(self.checkpoint, stored))

    def expect(self, name: str, expert: int | None = None) -> None:
        """Let the system fetch the parameter's bytes from the disk while something else is done."""
        if not hasattr(os, "posix_fadvise"):
            return
        for stored in self.stored_names(name, expert):
            tensor = self.checkpoint.tensors[stored]
            with (self.checkpoint.folder / tensor.file).open("rb") as file:
                os.posix_fadvise(file.fileno(), tensor.start, tensor.nbytes, os.POSIX_FADV_WILLNEED)

    def described(self) -> PreTrainedModel:
        """Return the model without weights, with the checkpoint's own generation config: what a saved
        folder's config files are written from."""
        model = copy(self.model)  # the meta model itself is shared and stays as it is
        model.config = deepcopy(model.config)
        set_generation_config(model, self.checkpoint.folder)
        return model

    def forget(self) -> None:
        """Let go of what the last rule made."""
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
        """Sort the stored names into the parameters they belong to, as transformers does when it loads."""
        rules = StoredNames(self.model)
        for stored in sorted(self.checkpoint.tensors, key=stored_order):
            if (found := rules.place(stored)) is None:
                continue  # left out on purpose by the model's class, or `meta_model` would have refused it
            name, pattern, rule = found
            made = self._made.setdefault(name, _Conversion(rule))
            made.stored.setdefault(pattern or stored, []).append(stored)
        for first, made in self._made.items():
            for name in [first] if made.rule is None else rule_targets(made.rule, first):
                self._targets.setdefault(name, first)

    def _add_ties(self) -> None:
        """A tied parameter has several names and is stored under one of them."""
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
                        "its config.json says that they are one. Correct tie_word_embeddings there, or load "
                        "the model whole."
                    )
            for name in family:
                self._targets.setdefault(name, self._targets[known[0]])


def _apart(made: _Conversion, experts: int) -> bool:
    """Are the experts stored one by one, and can each be made without the others?"""
    return (
        made.rule is not None
        and stacks_experts(made.rule)
        and all(len(names) == experts for names in made.stored.values())
    )

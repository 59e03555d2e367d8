"""How a model calls its blocks: the arguments of each block, as the model's own code makes them.

Most arguments are the same for all windows of one length: masks, positions, flags. Others belong to a window
(Gemma's embeddings per layer, Zamba's copy of the first hidden states), and some are outputs of the block
before. They are told apart by running the model with its blocks replaced by pass-throughs, once per window:
an argument that is the object which a pass-through returned comes from the block before, an empty dictionary
that every block gets is one they share, and the others are compared between windows.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from qcore.layers.stand_in import stand_in
from qcore.quantization.calibration.states import Path, State, at, leaves, rebuilt

HIDDEN = "hidden_states"


class NotInOrder(Exception):  # noqa: N818 (a reason, from which the caller makes an error)
    """The reason why a model's blocks cannot be run one by one."""


@dataclass(frozen=True)
class Form:
    """The form of a block's output: the `result` of one run, with the hidden states at the path `main`."""

    result: object
    main: Path

    @classmethod
    def of(cls, result: object) -> Form:
        """Return the form of a block that returned `result`: its first tensor is the hidden states."""
        for path, leaf in leaves(result):
            if isinstance(leaf, torch.Tensor):
                return cls(result, path)
        raise NotInOrder("one of its blocks returns no hidden states")

    def hidden(self, result: object) -> torch.Tensor:
        """Return the hidden states in the `result` of a run."""
        found = at(result, self.main)
        if not isinstance(found, torch.Tensor):
            raise TypeError("a block returned no hidden states")
        return found

    def passing(self, hidden: torch.Tensor) -> object:
        """Return what a block that passes `hidden` through would return. Other tensors in it are new objects
        of arbitrary content."""
        changes: dict[Path, object] = {
            path: leaf.clone() for path, leaf in leaves(self.result) if isinstance(leaf, torch.Tensor)
        }
        return rebuilt(self.result, changes | {self.main: hidden})


@dataclass
class Call:
    """The arguments of a block: `given`, (positional, by name), for the first window, with the hidden states
    at the path `hidden`.

    varying    {path: the value per window} where windows differ
    extra      {path: path in the output of the block before}
    shared     paths of dictionaries that blocks share
    """

    given: tuple[tuple, dict[str, Any]]
    hidden: Path
    varying: dict[Path, list] = field(default_factory=dict)
    extra: dict[Path, Path] = field(default_factory=dict)
    shared: tuple[Path, ...] = ()

    @property
    def fits_any_batch(self) -> bool:
        """Whether the same arguments serve a batch of several windows."""
        if self.varying or self.extra or self.shared:
            return False
        return all(
            not isinstance(leaf, torch.Tensor) or leaf.ndim < 2 or leaf.shape[0] == 1
            for path, leaf in leaves(self.given)
            if path != self.hidden
        )

    def arguments(self, state: State) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments for `state`. Dictionaries that blocks share are copies."""
        changes: dict[Path, object] = {self.hidden: state.hidden}
        changes |= {path: values[state.windows[0]] for path, values in self.varying.items()}
        changes |= {path: state.extra[source] for path, source in self.extra.items()}
        for path in self.shared:
            held: Any = copy(at(self.given, path))
            held.clear()
            held.update(state.shared[path])
            changes[path] = held
        return rebuilt(self.given, changes)


def record(
    model: Any, modules: Sequence[nn.Module], ids: torch.Tensor, forms: Sequence[Form]
) -> tuple[list[State], list[Call]]:
    """Return the states before the first of the blocks `modules` per window of `ids` (windows, T), and how
    `model` calls each block. Raise `NotInOrder` if it does not call them one after another, each once."""
    states: list[State] = []
    calls: list[Call] = []
    for number, window in enumerate(ids):
        seen = _pass(model, modules, window, forms)
        if not calls:
            calls = _described([given for given, _ in seen], [made for _, made in seen])
        known: dict[tuple[int, int], bool] = {}
        for call, (given, _) in zip(calls, seen, strict=True):
            _compare(call, given, number, len(ids), known)
        first = calls[0]
        given = seen[0][0]
        held = {path: contents(at(given, path)) for path in first.shared}
        states.append(State(_tensor(at(given, first.hidden)), (number,), {}, held))
    return states, calls


Given = tuple[tuple, dict[str, Any]]


def _pass(
    model: Any, modules: Sequence[nn.Module], window: torch.Tensor, forms: Sequence[Form]
) -> list[tuple[Given, object]]:
    """Return (the arguments, what its pass-through returned) of each block for one `window` (T,)."""
    seen: list[tuple[int, Given, object]] = []

    def forward(position: int, *arguments, **keywords):
        given = arguments, keywords
        made = forms[position].passing(hidden_of(given))
        seen.append((position, given, made))
        return made

    with ExitStack() as replaced:
        for position, block in enumerate(modules):
            replaced.enter_context(stand_in(block, partial(forward, position)))
        _run(model, window[None])
    if [position for position, _, _ in seen] != list(range(len(modules))):
        raise NotInOrder("it does not run its blocks one after another, each once")
    return [(given, made) for _, given, made in seen]


def _run(model: Any, ids: torch.Tensor) -> None:
    try:
        model.base_model(input_ids=ids, use_cache=False)
    except NotInOrder:
        raise
    except Exception as error:  # code of others, with its blocks replaced
        raise NotInOrder(f"it does not run on {ids.shape[1]} tokens ({error})") from error


def hidden_of(given: Given) -> torch.Tensor:
    """Return the hidden states in the arguments of a block."""
    return _tensor(at(given, hidden_path(given)))


def hidden_path(given: Given) -> Path:
    """Return where the hidden states lie in the arguments of a block: they come first, or have their name."""
    arguments, keywords = given
    if arguments and isinstance(arguments[0], torch.Tensor):
        return 0, 0
    if isinstance(keywords.get(HIDDEN), torch.Tensor):
        return 1, HIDDEN
    for path, leaf in leaves(given):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            return path
    raise NotInOrder("one of its blocks gets no hidden states")


def _described(given: list[Given], made: list[object]) -> list[Call]:
    """Return the calls for one window, from the arguments of each block and what its pass-through
    returned."""
    calls = [Call(each, hidden_path(each)) for each in given]
    for position, (call, before) in enumerate(zip(calls, [None, *made], strict=False)):
        if position == 0:
            continue
        outputs = {id(leaf): path for path, leaf in leaves(before) if isinstance(leaf, torch.Tensor)}
        passed = _tensor(at(calls[position - 1].given, calls[position - 1].hidden))
        hidden = _tensor(at(call.given, call.hidden))
        same = hidden.data_ptr() == passed.data_ptr() and hidden.shape == passed.shape
        if hidden is not passed and not same:
            raise NotInOrder(f"it computes something between its blocks number {position} and {position + 1}")
        call.extra = {
            path: outputs[id(leaf)]
            for path, leaf in leaves(call.given)
            if path != call.hidden and id(leaf) in outputs and leaf is not passed
        }
    empty = [
        {
            path: value
            for path, value in _values(call.given)
            if isinstance(value, MutableMapping) and not value
        }
        for call in calls
    ]
    for call, own, beside in zip(calls, empty, [*empty[1:2], *empty], strict=False):
        call.shared = tuple(path for path, value in own.items() if beside.get(path) is value)
    return calls


def _values(given: Given) -> list[tuple[Path, object]]:
    arguments, keywords = given
    return [((0, i), value) for i, value in enumerate(arguments)] + [
        ((1, name), value) for name, value in keywords.items()
    ]


def _compare(call: Call, given: Given, number: int, windows: int, known: dict[tuple[int, int], bool]) -> None:
    """Note where the arguments `given` for window `number` differ from those of the first window."""
    if number == 0:
        return
    own = dict(leaves(given))
    for path, first in leaves(call.given):
        if path == call.hidden or path in call.extra or not isinstance(first, torch.Tensor):
            continue
        value = own.get(path)
        if not isinstance(value, torch.Tensor):
            raise NotInOrder("it calls its blocks with other arguments for other texts")
        if path not in call.varying:
            pair = id(first), id(value)
            if pair not in known:
                known[pair] = first.shape == value.shape and torch.equal(first, value)
            if known[pair]:
                continue
            call.varying[path] = [first] * windows
        call.varying[path][number] = value


def _tensor(value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise NotInOrder("one of its blocks gets no hidden states")
    return value


def contents(value: object) -> dict:
    """Return what a dictionary that blocks share holds now."""
    if not isinstance(value, Mapping):
        raise NotInOrder("its blocks share something other than a dictionary")
    return dict(value)


def form_of_each(model: Any, modules: Sequence[nn.Module], ids: torch.Tensor) -> tuple[list[Form], list]:
    """Return the form of each block's output, and its hidden states, from one run of `model` on `ids`
    (1, T)."""
    found: dict[int, Form] = {}
    hidden: dict[int, torch.Tensor] = {}

    def note(position: int, module: nn.Module, arguments: tuple, result: object) -> None:
        found[position] = Form.of(result)
        hidden[position] = found[position].hidden(result)

    hooks = [block.register_forward_hook(partial(note, position)) for position, block in enumerate(modules)]
    try:
        _run(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    if len(found) != len(modules):
        raise NotInOrder("it does not run its blocks one after another, each once")
    return [found[i] for i in range(len(modules))], [hidden[i] for i in range(len(modules))]

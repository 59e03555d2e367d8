"""What the linear layers of a block are given: which of them share an input, and the second moments of each
input.

    H = 2/n · Σ x xᵀ                   the Hessian of a layer's squared error, (K, K), over n tokens
    D = 2/n · Σ (x' − x) xᵀ            drift: x' is what the layer would see in the unquantized model

The error of a layer that writes to the residual stream matters relative to what it is added to, because the
next norm divides by that; a few tokens are a thousand times larger than the others there. So for those layers
each token counts 1 / |stream|².

H is what GPTQ, weighted k-means and AWQ work with; D tells what quantizing the layers before has changed.
Layers are found by running the block once with hooks. Fused experts (three-dimensional parameters) are not
modules; their inputs are seen by watching the products.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qcore.layers.select import Target


@dataclass(frozen=True)
class Stage:
    """Targets that read the same input, in the order in which the block comes to them."""

    targets: tuple[Target, ...]

    @property
    def names(self) -> list[str]:
        """Of the targets."""
        return [target.name for target in self.targets]


@dataclass
class Moments:
    """`hessian` (K, K), and where they were asked for `drift` (K, K) and the mean `magnitude` |x| (K,), all
    float32, over `tokens`."""

    hessian: torch.Tensor
    drift: torch.Tensor | None
    magnitude: torch.Tensor | None
    tokens: int

    @classmethod
    def empty(cls, columns: int, *, drift: bool = False, magnitude: bool = False) -> "Moments":
        """Nothing seen yet."""
        square = lambda: torch.zeros(columns, columns)  # noqa: E731
        return cls(square(), square() if drift else None, torch.zeros(columns) if magnitude else None, 0)

    def add(
        self, inputs: torch.Tensor, x_fp: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> None:
        """Take in `inputs` (n, K), and what they are in the unquantized model. The error at each token is
        multiplied by its `weight` (n, 1), if there is one; the mean |x| is that of the inputs as they are."""
        total = self.tokens + len(inputs)
        if total == 0:
            return
        keep, share = self.tokens / total, 2 / total
        if self.magnitude is not None:
            self.magnitude.mul_(keep).add_(inputs.abs().sum(0), alpha=1 / total)
        drift = None if self.drift is None or x_fp is None else x_fp - inputs
        if weight is not None:
            inputs, drift = inputs * weight, None if drift is None else drift.mul_(weight)
        _add_square(self.hessian, inputs, keep, share)
        if self.drift is not None and drift is not None:
            self.drift.addmm_(drift.T, inputs, beta=keep, alpha=share)
        self.tokens = total


def _add_square(to: torch.Tensor, inputs: torch.Tensor, keep: float, share: float, parts: int = 4) -> None:
    """`to` = keep · `to` + share · XᵀX for the `inputs` X (n, K). It is symmetric, so what lies left of the
    diagonal is not multiplied but copied: with 4 parts that saves 3/8 of the work."""
    size = -(-len(to) // parts)
    for start in range(0, len(to), size):
        rows, later = slice(start, start + size), slice(start + size, None)
        to[rows, start:].addmm_(inputs[:, rows].T, inputs[:, start:], beta=keep, alpha=share)
        to[later, rows] = to[rows, later].T


class _Reached(Exception):  # noqa: N818 (no error: the part of the block that was asked for has been run)
    pass


def find_stages(
    run: Callable[[], object], block: nn.Module, prefix: str, targets: list[Target]
) -> tuple[list[Stage], list[Target]]:
    """The stages of a block whose modules are called `prefix`.…, found by one `run`; and the targets that it
    never came to."""
    calls: list[tuple[Target, torch.Tensor]] = []
    modules = {target.module: target for target in targets}
    hooks = []
    for target in modules.values():
        inside = [other for other in targets if other.module == target.module]

        def note(module, arguments, keywords, inside=inside):
            calls.extend((each, _first(arguments, keywords)) for each in inside)

        hooks.append(_within(block, prefix, target).register_forward_pre_hook(note, with_kwargs=True))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    stages: list[list[tuple[Target, torch.Tensor]]] = []
    seen: set[str] = set()
    for target, given in calls:
        if target.name in seen:
            continue
        seen.add(target.name)
        last = stages[-1][-1] if stages else None
        if last is not None and not target.fused and not last[0].fused and _same(last[1], given):
            stages[-1].append((target, given))
        else:
            stages.append([(target, given)])
    found = [Stage(tuple(target for target, _ in stage)) for stage in stages]
    return found, [target for target in targets if target.name not in seen]


def watch(
    run: Callable[[], object], block: nn.Module, prefix: str, stages: list[Stage], *, whole: bool = False
) -> list[torch.Tensor]:
    """What the linear layers of each stage are given in one `run`, (n, K). Unless it is to be `whole`, it
    ends where the last begins."""
    seen: list[torch.Tensor | None] = [None] * len(stages)

    def keep(module, arguments, keywords, place):
        seen[place] = _first(arguments, keywords).flatten(0, -2).float()
        if not whole and all(inputs is not None for inputs in seen):
            raise _Reached

    hooks = [
        _within(block, prefix, stage.targets[0]).register_forward_pre_hook(
            partial(keep, place=place), with_kwargs=True
        )
        for place, stage in enumerate(stages)
    ]
    try:
        run()
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [inputs for inputs in seen if inputs is not None]


def watch_experts(
    run: Callable[[], object], parameter: torch.Tensor, transposed: bool
) -> Iterator[tuple[int, torch.Tensor]]:
    """For one `run`, (number of the expert, its inputs (n, K)) for each product with a matrix of the fused
    `parameter` (E, …, …)."""
    watcher = _Products(parameter, transposed)
    with watcher:
        run()
    yield from watcher.seen


class _Products(TorchFunctionMode):
    """Sees every product whose right-hand side is a slice of `parameter`."""

    def __init__(self, parameter: torch.Tensor, transposed: bool):
        super().__init__()
        self.parameter, self.transposed = parameter, transposed
        self.seen: list[tuple[int, torch.Tensor]] = []
        self._products = (
            {nn.functional.linear}
            if not transposed
            else {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
        )

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in self._products and len(arguments) > 1:
            inputs, weight = arguments[0], arguments[1]
            own = self.parameter.untyped_storage().data_ptr()
            if (
                isinstance(weight, torch.Tensor)
                and weight.ndim == 2
                and weight.untyped_storage().data_ptr() == own
            ):
                size = self.parameter[0].numel()
                expert = (weight.storage_offset() - self.parameter.storage_offset()) // size
                self.seen.append((expert, inputs.detach().flatten(0, -2).float()))
        return function(*arguments, **(keywords or {}))


def _within(block: nn.Module, prefix: str, target: Target) -> nn.Module:
    return block.get_submodule(target.module.removeprefix(f"{prefix}."))


def _first(arguments: tuple, keywords: dict) -> torch.Tensor:
    return arguments[0] if arguments else next(iter(keywords.values()))


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left is right or (left.shape == right.shape and left.data_ptr() == right.data_ptr())

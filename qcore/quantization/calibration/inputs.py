"""Inputs of a block's linear layers: which layers share one, and the second moments of each.

    H = 2/n · Σ x xᵀ                   the Hessian of a layer's squared error, (K, K), over n tokens
    D = 2/n · Σ (x_fp − x) xᵀ          drift: x_fp is the same input in the unquantized model

For a layer that writes to the residual stream, the error matters relative to the size of the stream, because
the next norm divides by that size, and a few tokens are a thousand times larger than the others. So the error
of each token is weighted by 1 / |stream|² for those layers.

GPTQ, weighted k-means and AWQ use H; D measures the change caused by quantizing the layers before. Layers are
found by running the block once with hooks. Fused experts (three-dimensional parameters) are not modules, so
their inputs are taken from the matrix products themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qcore.base.errors import InputError
from qcore.layers.select import Target


@dataclass(frozen=True)
class Stage:
    """Targets that read the same input, in the order of execution; `uses` times in a run of the block."""

    targets: tuple[Target, ...]
    uses: int = 1

    @property
    def names(self) -> list[str]:
        """The names of the targets."""
        return [target.name for target in self.targets]


@dataclass
class Moments:
    """Moments of an input over `tokens`, float32: `hessian` (K, K), and if requested `drift` (K, K) and the
    mean |x| `magnitude` (K,)."""

    hessian: torch.Tensor
    drift: torch.Tensor | None
    magnitude: torch.Tensor | None
    tokens: int

    @classmethod
    def empty(
        cls, columns: int, device: torch.device, *, drift: bool = False, magnitude: bool = False
    ) -> "Moments":
        """Return the moments, on `device`, of an input of K `columns` over no tokens."""
        zeros = partial(torch.zeros, device=device)
        return cls(
            zeros(columns, columns),
            zeros(columns, columns) if drift else None,
            zeros(columns) if magnitude else None,
            0,
        )

    def add(
        self, inputs: torch.Tensor, x_fp: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> None:
        """Add `inputs` (n, K), and the same inputs in the unquantized model, `x_fp` (n, K), for drift. The
        error of each token is multiplied by its `weight` (n, 1), if given; the mean |x| is not weighted."""
        total = self.tokens + len(inputs)
        if not len(inputs):
            return
        keep, share = self.tokens / total, 2 / total
        if self.magnitude is not None:
            self.magnitude.mul_(keep).add_(inputs.abs().sum(0), alpha=1 / total)
        known = x_fp is not None and x_fp.shape == inputs.shape  # routers may send other tokens
        drift = x_fp - inputs if self.drift is not None and x_fp is not None and known else None
        if weight is not None:
            inputs, drift = inputs * weight, None if drift is None else drift.mul_(weight)
        _add_square(self.hessian, inputs, keep, share)
        if self.drift is not None and drift is not None:
            self.drift.addmm_(drift.T, inputs, beta=keep, alpha=share)
        elif self.drift is not None:
            self.drift.mul_(keep)
        self.tokens = total

    def check(self, names: list[str]) -> None:
        """Raise `InputError` unless the moments of the inputs of the weights called `names` are finite."""
        if not self.hessian.diagonal().isfinite().all():
            raise InputError(
                f"The inputs of {', '.join(names)} are not finite on the calibration text, or their squares "
                "exceed float32 (inputs above about 1e19), so no codes can be chosen from them. Choose a "
                "recipe that needs no text, such as int4-g64-hqq, or skip the layer."
            )


def _add_square(to: torch.Tensor, inputs: torch.Tensor, keep: float, share: float, parts: int = 4) -> None:
    """Set `to` (K, K) to keep · `to` + share · XᵀX for the `inputs` X (n, K). The result is symmetric, so the
    blocks left of the diagonal are copied; with 4 parts that saves 3/8 of the work."""
    size = -(-len(to) // parts)
    for start in range(0, len(to), size):
        rows, later = slice(start, start + size), slice(start + size, None)
        to[rows, start:].addmm_(inputs[:, rows].T, inputs[:, start:], beta=keep, alpha=share)
        to[later, rows] = to[rows, later].T


class _Reached(Exception):  # noqa: N818 (not an error: the requested part of the block has run)
    pass


def find_stages(
    run: Callable[[], object], block: nn.Module, prefix: str, targets: list[Target]
) -> tuple[list[Stage], list[Target]]:
    """Return the stages of a block (named `prefix`) in the order of execution, found by one `run`, and the
    targets that `run` did not reach."""
    calls: list[tuple[Target, torch.Tensor]] = []
    modules = {target.module: target for target in targets}
    uses: Counter[str] = Counter()
    hooks = []
    for target in modules.values():
        inside = [other for other in targets if other.module == target.module]

        def note(module, arguments, keywords, inside=inside):
            uses.update([inside[0].module])
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
        alike = last is not None and not target.fused and not last[0].fused and _same(last[1], given)
        if last is not None and alike and uses[target.module] == uses[last[0].module]:
            stages[-1].append((target, given))
        else:
            stages.append([(target, given)])
    found = [Stage(tuple(target for target, _ in stage), uses[stage[0][0].module]) for stage in stages]
    return found, [target for target in targets if target.name not in seen]


def watch(
    run: Callable[[], object], block: nn.Module, prefix: str, stages: list[Stage], *, whole: bool = False
) -> list[torch.Tensor]:
    """Return the inputs (…, K), float32, of each stage's linear layers in one `run`: (n, K) of all uses, if
    there are several, and (0, K) of a layer that is not reached. Stop the run at the last stage unless it is
    to be `whole`."""
    seen: list[list[torch.Tensor]] = [[] for _ in stages]

    def keep(module, arguments, keywords, place):
        seen[place].append(_first(arguments, keywords).float())
        if not whole and all(len(each) >= stage.uses for each, stage in zip(seen, stages, strict=True)):
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
    return [
        inputs[0] if len(inputs) == 1 else _all_uses(inputs, stage.targets[0], block, prefix)
        for inputs, stage in zip(seen, stages, strict=True)
    ]


def _all_uses(inputs: list[torch.Tensor], target: Target, block: nn.Module, prefix: str) -> torch.Tensor:
    if inputs:
        return torch.cat([each.flatten(0, -2) for each in inputs])
    matrix = target.matrices(block, prefix)[0]
    return torch.zeros(0, matrix.shape[1], device=matrix.device)


def watch_experts(
    run: Callable[[], object], parameter: torch.Tensor, transposed: bool
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (number of the expert, its inputs (n, K)) for each product in one `run` with a matrix of the
    fused `parameter` (E, …, …)."""
    watcher = _Products(parameter, transposed)
    with watcher:
        run()
    yield from watcher.seen


class _Products(TorchFunctionMode):
    """Records every product whose right-hand side is a slice of `parameter`."""

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
        if len(arguments) > 1 and self._is_own(arguments[1]):
            inputs, weight = arguments[0], arguments[1]
            if function in self._products and weight.ndim == 2:
                size = self.parameter[0].numel()
                expert = (weight.storage_offset() - self.parameter.storage_offset()) // size
                self.seen.append((expert, inputs.detach().flatten(0, -2).float()))
            elif function is torch.bmm:
                self.seen += enumerate(map(_routed, inputs.detach().float()))
        return function(*arguments, **(keywords or {}))

    def _is_own(self, weight: object) -> bool:
        own = self.parameter.untyped_storage().data_ptr()
        return isinstance(weight, torch.Tensor) and weight.untyped_storage().data_ptr() == own


def _routed(inputs: torch.Tensor) -> torch.Tensor:
    """Return the rows of `inputs` (n, K) that are not zero: Llama 4 gives every token to every expert, and
    multiplies those that are not routed to it by 0."""
    return inputs[inputs.ne(0).any(dim=1)]


def _within(block: nn.Module, prefix: str, target: Target) -> nn.Module:
    return block.get_submodule(target.module.removeprefix(f"{prefix}."))


def _first(arguments: tuple, keywords: dict) -> torch.Tensor:
    return arguments[0] if arguments else next(iter(keywords.values()))


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left is right or (left.shape == right.shape and left.data_ptr() == right.data_ptr())

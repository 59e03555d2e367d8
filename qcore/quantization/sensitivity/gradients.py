"""Gradients of the model's predictions at the outputs of every layer, one block at a time from the last to
the first.

For tokens y drawn from the model's own predictions (not from the text), the second moment of the gradient g
of Σ log p(y) at a layer's output at one token is the Fisher information. A small error e of that output
changes the predictions by

    KL ≈ ½ · E[(g · e)²]                         (second order; tokens taken as independent of each other)

Memory: the hidden states between blocks, (blocks + 1) · tokens · hidden size · 4 bytes, and the gradients of
one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from qcore.layers.select import Target
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.states import State
from qcore.quantization.calibration.states import gradients as pull
from qcore.quantization.calibration.tail import Tail

SAMPLES = 2
Slopes = list[torch.Tensor | None]  # at the tensors of a state, the hidden states first


@dataclass
class Seen:
    """A linear layer over all windows: its `inputs` (n, K), and per sample the `gradients` at its output (n,
    N)."""

    inputs: torch.Tensor
    gradients: list[torch.Tensor]


@dataclass
class BlockGradients:
    """Block number `position`: the states `hidden` before it per window, the gradients
    `outgoing[sample][window]` at each of the tensors of the state after it, and its linear layers `seen`, by
    the target's name, without fused experts."""

    position: int
    hidden: list[State]
    outgoing: list[list[Slopes]]
    seen: dict[str, Seen]


def states(blocks: Blocks, ids: torch.Tensor, step: Callable[[int], None]) -> list[list[State]]:
    """Return the states before each block per window of `ids` (windows, T), and those after the last block,
    as the last entry."""
    found = [blocks.embed(ids)]
    for position in range(len(blocks)):
        step(position)
        found.append([blocks.run(position, hidden) for hidden in found[-1]])
    return found


def backwards(
    blocks: Blocks,
    ids: torch.Tensor,
    between: list[list[State]],
    targets: list[list[Target]],
    samples: int = SAMPLES,
    seed: int = 0,
) -> Iterator[BlockGradients]:
    """Yield the gradients of each block, from the last block to the first. `between` is the result of
    `states`, freed block by block; `targets` lists the targets per block."""
    outgoing = _at_the_end(Tail(blocks), ids, between.pop(), samples, seed)
    for position in reversed(range(len(blocks))):
        hidden = between.pop()
        incoming, seen = _through(blocks, position, hidden, outgoing, targets[position])
        yield BlockGradients(position, hidden, outgoing, seen)
        outgoing = incoming


def _at_the_end(
    tail: Tail, ids: torch.Tensor, last: list[State], samples: int, seed: int
) -> list[list[Slopes]]:
    """Return ∂ Σ log p(y) / ∂ (the last block's output), [sample][window]."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[Slopes]] = [[] for _ in range(samples)]
    for window, state in zip(ids, last, strict=True):
        unread: Slopes = [None] * (len(state.tensors) - 1)
        with torch.enable_grad():
            hidden = state.hidden.detach().requires_grad_()
            log_p = tail(window, hidden).log_softmax(-1)
            drawn = torch.multinomial(
                log_p.detach().exp().cpu(), samples, replacement=True, generator=generator
            )
            for sample in range(samples):
                total = log_p.gather(1, drawn[:, sample, None].to(log_p.device)).sum()
                (slope,) = torch.autograd.grad(total, hidden, retain_graph=sample + 1 < samples)
                found[sample].append([slope, *unread])
    return found


def _through(blocks: Blocks, position: int, hidden, outgoing, targets: list[Target]):
    """Return the gradients at the block's inputs, [sample][window], and inputs and gradients of its linear
    layers."""
    block, prefix = blocks.modules[position], f"{blocks.name}.{position}."
    linear = [target for target in targets if not target.fused]
    given: dict[str, list[torch.Tensor]] = {target.name: [] for target in linear}
    gradients: dict[str, list[list[torch.Tensor]]] = {
        target.name: [[] for _ in outgoing] for target in linear
    }
    incoming: list[list[Slopes]] = [[] for _ in outgoing]
    for window, state in enumerate(hidden):
        outputs: list[tuple[str, torch.Tensor]] = []  # a layer may be used more than once

        def note(module, arguments, keywords, output, name: str, outputs=outputs) -> None:
            inputs = arguments[0] if arguments else next(iter(keywords.values()))
            given[name].append(inputs.detach().flatten(0, -2).float())
            outputs.append((name, output))

        hooks = [
            block.get_submodule(target.module.removeprefix(prefix)).register_forward_hook(
                lambda module, arguments, keywords, output, name=target.name: note(
                    module, arguments, keywords, output, name
                ),
                with_kwargs=True,
            )
            for target in linear
        ]
        try:
            with torch.enable_grad():
                state = state.detached()
                result = blocks.call(position, state)
        finally:
            for hook in hooks:
                hook.remove()
        before = state.tensors
        for sample, after in enumerate(outgoing):
            more = sample + 1 < len(outgoing)
            made = [output for _, output in outputs]
            found = pull(result, after[window], [*before, *made], retain_graph=more)
            incoming[sample].append(found[: len(before)])
            for (name, output), gradient in zip(outputs, found[len(before) :], strict=True):
                gradient = torch.zeros_like(output) if gradient is None else gradient
                gradients[name][sample].append(gradient.flatten(0, -2).float())
    seen = {
        name: Seen(torch.cat(inputs), [torch.cat(each) for each in gradients[name]])
        for name, inputs in given.items()
        if inputs
    }
    return incoming, seen

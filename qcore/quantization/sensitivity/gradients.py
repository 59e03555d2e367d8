"""What the model's predictions mind: gradients at the outputs of every layer, one block at a time from the
last to the first.

For tokens y drawn from the model's own predictions (not from the text), the gradient g of Σ log p(y) at a
layer's output at one token has the Fisher information as its second moment. A small error e there moves the
predictions by

    KL ≈ ½ · E[(g · e)²]                         (second order; tokens taken as independent of each other)

Only the states between blocks are held, (blocks + 1) · tokens · hidden size · 4 bytes, and the gradients of
one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from qcore.layers.select import Target
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.tail import Tail

SAMPLES = 2


@dataclass
class Seen:
    """A linear layer over all windows: what it is given, (n, K), and the gradient at what it puts out, (n,
    N), for each sample."""

    inputs: torch.Tensor
    gradients: list[torch.Tensor]


@dataclass
class BlockGradients:
    """Block number `position`: its inputs `hidden` for each window (1, T, H), the gradients at its outputs
    `outgoing[sample][window]`, and what its linear layers saw, by the target's name. Fused experts, which are
    no modules, are not among them."""

    position: int
    hidden: list[torch.Tensor]
    outgoing: list[list[torch.Tensor]]
    seen: dict[str, Seen]


def states(blocks: Blocks, ids: torch.Tensor, step: Callable[[int], None]) -> list[list[torch.Tensor]]:
    """What each block is given for each window of `ids` (windows, T), and what the last one puts out."""
    found = [blocks.embed(ids)]
    for position in range(len(blocks)):
        step(position)
        found.append([blocks.run(position, hidden) for hidden in found[-1]])
    return found


def backwards(
    blocks: Blocks,
    ids: torch.Tensor,
    between: list[list[torch.Tensor]],
    targets: list[list[Target]],
    samples: int = SAMPLES,
    seed: int = 0,
) -> Iterator[BlockGradients]:
    """Walk from the last block to the first. `between` are the `states`, of which those of blocks gone by are
    let go; `targets` those of each block."""
    outgoing = _at_the_end(Tail(blocks), ids, between.pop(), samples, seed)
    for position in reversed(range(len(blocks))):
        hidden = between.pop()
        incoming, seen = _through(blocks, position, hidden, outgoing, targets[position])
        yield BlockGradients(position, hidden, outgoing, seen)
        outgoing = incoming


def _at_the_end(
    tail: Tail, ids: torch.Tensor, last: list[torch.Tensor], samples: int, seed: int
) -> list[list[torch.Tensor]]:
    """∂ Σ log p(y) / ∂ (the last block's output), [sample][window] (1, T, H)."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[torch.Tensor]] = [[] for _ in range(samples)]
    for window, state in zip(ids, last, strict=True):
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            log_p = tail(window, state).log_softmax(-1)
            drawn = torch.multinomial(
                log_p.detach().exp().cpu(), samples, replacement=True, generator=generator
            )
            for sample in range(samples):
                total = log_p.gather(1, drawn[:, sample, None].to(log_p.device)).sum()
                found[sample].append(torch.autograd.grad(total, state, retain_graph=sample + 1 < samples)[0])
    return found


def _through(blocks: Blocks, position: int, hidden, outgoing, targets: list[Target]):
    """The gradients at the block's inputs, [sample][window], and what its linear layers saw."""
    block, prefix = blocks.modules[position], f"{blocks.name}.{position}."
    linear = [target for target in targets if not target.fused]
    given: dict[str, list[torch.Tensor]] = {target.name: [] for target in linear}
    gradients: dict[str, list[list[torch.Tensor]]] = {
        target.name: [[] for _ in outgoing] for target in linear
    }
    incoming: list[list[torch.Tensor]] = [[] for _ in outgoing]
    for window, state in enumerate(hidden):
        outputs: dict[str, torch.Tensor] = {}

        def note(module, arguments, keywords, output, name: str, outputs=outputs) -> None:
            inputs = arguments[0] if arguments else next(iter(keywords.values()))
            given[name].append(inputs.detach().flatten(0, -2).float())
            outputs[name] = output

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
                state = state.detach().requires_grad_()
                result = blocks.call(position, state)
        finally:
            for hook in hooks:
                hook.remove()
        for sample, after in enumerate(outgoing):
            found = torch.autograd.grad(
                result,
                [state, *outputs.values()],
                after[window],
                retain_graph=sample + 1 < len(outgoing),
                allow_unused=True,
            )
            incoming[sample].append(found[0])
            for (name, output), gradient in zip(outputs.items(), found[1:], strict=True):
                gradient = torch.zeros_like(output) if gradient is None else gradient
                gradients[name][sample].append(gradient.flatten(0, -2).float())
    seen = {
        name: Seen(torch.cat(inputs), [torch.cat(each) for each in gradients[name]])
        for name, inputs in given.items()
        if inputs
    }
    return incoming, seen

"""Perplexity and divergence of the baseline and several recipes in one pass over the layers of a model of any
size.

    for each block:
        for the baseline and each recipe:
            fill the block, advance the hidden states of all windows, drop the block

Memory holds the hidden states (tokens · width · 4 bytes for the baseline and each recipe), a block of
quantized weights, and one widened weight. At the end `qcore.evaluation.evaluate` scores each model; the
blocks then return the stored hidden states. Logits are computed a few positions at a time, so there is no
tensor of size tokens x vocabulary.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.evaluation import Evaluation, Reference, evaluate
from qcore.evaluation import windows as cut
from qcore.layers.stand_in import stand_in
from qcore.models import Checkpoint
from qcore.quantization.calibration.blocks import Blocks, find_blocks
from qcore.recipes import Recipe, parse
from qcore.streaming.frame import Frame
from qcore.streaming.quantizing import check
from qcore.streaming.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASELINE = "fp32"


def evaluate_streamed(
    checkpoint: Checkpoint,
    recipes: list[Recipe],
    ids: torch.Tensor,
    *,
    window: int = 512,
    stride: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Score the text `ids` (T,) with the baseline and each of `recipes`: {name: evaluation}, the baseline
    "fp32" first.

    The figures are those of `qcore.evaluation.evaluate`, to rounding. Raise `InputError` for recipes that
    need more than one tensor at a time, a checkpoint that is already quantized, or a model whose blocks do
    not run in sequence.
    """
    if checkpoint.is_quantized:
        raise InputError(f"{checkpoint.name} is quantized already. Give the original model and the recipes.")
    chosen = [recipe for recipe in recipes if recipe.name != BASELINE]
    for recipe in chosen:
        check(recipe)
    window, stride = cut.check(window, stride)
    source = Source(checkpoint)
    models = [_Model(source, recipe, ids, window, stride) for recipe in (parse(BASELINE), *chosen)]
    blocks = len(models[0].blocks)
    for position in range(blocks):
        for number, model in enumerate(models):
            if progress is not None:
                progress(
                    position * len(models) + number,
                    blocks * len(models),
                    f"block {position + 1} of {blocks}: {model.recipe.name}",
                )
            model.advance(position)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.safetensors"
        for model in models:
            is_baseline = model.recipe.name == BASELINE
            results[model.recipe.name] = evaluate(
                model.frame.model,
                ids,
                window=window,
                stride=stride,
                tokenizer=tokenizer,
                progress=progress,
                record=reference if is_baseline else None,
                checkpoint=checkpoint.folder,
                reference=None if is_baseline else Reference.open(reference),
            )
    return results


class _Model:
    """One recipe's model and its hidden states. After the last `advance` its blocks return the stored hidden
    states."""

    @torch.no_grad()
    def __init__(self, source: Source, recipe: Recipe, ids: torch.Tensor, window: int, stride: int):
        self.recipe = recipe
        self.frame = Frame(source, recipe)
        self._name, self.blocks = find_blocks(self.frame.model)
        self._unused = list(self.blocks)  # each block is put back when its turn comes
        self._returns_tuple = False
        self._reading: bytes = b""
        self._final: dict[bytes, torch.Tensor] = {}
        texts = [ids[span.begin : span.end] for span in cut.windows(len(ids), window, stride)]
        lengths = dict.fromkeys(len(text) for text in texts)
        self._groups = [
            (Blocks(self.frame.model), [text for text in texts if len(text) == length]) for length in lengths
        ]
        for position in range(1, len(self.blocks)):
            self.blocks[position] = self._stand_in(position)
        self.frame.fill("", leave=self._name)
        self.frame.fill(f"{self._name}.0")
        hook = self.blocks[0].register_forward_hook(self._look)
        self._states = [blocks.embed(torch.stack(members), whole=False) for blocks, members in self._groups]
        # a stand-in is a deep copy of its block, and would also copy the objects that the hook refers to
        hook.remove()

    @torch.no_grad()
    def advance(self, position: int) -> None:
        """Run block `position` over all windows, and drop it."""
        if position:
            self.blocks[position] = self._unused[position]
            self.frame.fill(f"{self._name}.{position}")
        for (blocks, _), states in zip(self._groups, self._states, strict=True):
            for i, hidden in enumerate(states):
                states[i] = blocks.run(position, hidden)
        self.blocks[position], self._unused[position] = self._stand_in(position), nn.Identity()
        # modules form reference cycles, so gigabytes would wait for the garbage collector
        gc.collect()
        if position == len(self.blocks) - 1:
            for (_, members), states in zip(self._groups, self._states, strict=True):
                self._final |= {_key(text): state.hidden for text, state in zip(members, states, strict=True)}
            self._states = []
            self.frame.model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _stand_in(self, position: int) -> nn.Module:
        """Return a block without weights that returns its input; the last block returns the stored hidden
        states of the current text."""
        block = self.frame.empty(self._unused[position])

        def forward(*arguments, **keywords):
            hidden = arguments[0] if arguments else keywords["hidden_states"]
            if self._final and position == len(self.blocks) - 1:
                hidden = self._final[self._reading]
            return (hidden,) if self._returns_tuple else hidden

        stand_in(block, forward)  # other attributes of the block select its mask
        return block

    def _look(self, module: nn.Module, arguments, output) -> None:
        self._returns_tuple = isinstance(output, tuple)

    def _note(self, module: nn.Module, arguments, keywords) -> None:
        self._reading = _key((arguments[0] if arguments else keywords["input_ids"])[0])


def _key(text: torch.Tensor) -> bytes:
    """Return a key that is equal for windows of the same tokens, which have the same hidden states."""
    return text.cpu().to(torch.int64).numpy().tobytes()

"""llama.cpp's importance matrix: the mean square of each input channel of each linear layer over the
calibration text.

    importance(j) = 1/n · Σ x_j²       over n tokens, as the unquantized model computes them

llama-cpp-python does not include the tool that collects it, but the quantizer takes it through its C
interface: an array of (name of the tensor in the file, values, their number) that ends with an empty name.
"""

import ctypes
from collections.abc import Callable

import torch

from qcore.layers.select import select
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import find_stages, watch
from qcore.recipes import parse


@torch.no_grad()
def importance(
    model: torch.nn.Module, ids: torch.Tensor, say: Callable[[str], None] = lambda text: None
) -> dict[str, torch.Tensor]:
    """Return {name of the weight: importance of its inputs (K,)} of the linear layers in the blocks of
    `model`, over `ids` (windows, T)."""
    blocks, targets = Blocks(model), select(model, parse("int4-g64")).targets
    hidden, found = blocks.embed(ids), {}
    for position, block in enumerate(blocks.modules):
        say(f"importance matrix, block {position + 1} of {len(blocks)}")
        prefix = f"{blocks.name}.{position}"
        own = [target for target in targets if target.module.startswith(f"{prefix}.")]
        stages, _ = find_stages(lambda position=position: blocks.run(position, hidden[0]), block, prefix, own)
        sums = [0.0] * len(stages)
        for i, state in enumerate(hidden):

            def run(i: int = i, position: int = position, state: torch.Tensor = state) -> None:
                hidden[i] = blocks.run(position, state)

            for place, inputs in enumerate(watch(run, block, prefix, stages, whole=True)):
                sums[place] = sums[place] + inputs.double().square().sum(0)
        for stage, total in zip(stages, sums, strict=True):
            found |= {target.name: (total / ids.numel()).float() for target in stage.targets}
    return found


def as_c(values: dict[str, torch.Tensor], structure: type[ctypes.Structure]):
    """Convert `values` (name in the file: importance (K,)) to the array that the quantizer reads, of
    `structure`, the library's `llama_model_imatrix_data` (name, data, size). Keep it alive while C uses it.
    """
    array = (structure * (len(values) + 1))()  # the last one stays empty and marks the end
    for entry, (name, importances) in zip(array, values.items(), strict=False):
        entry.name = name.encode()
        entry.data = (ctypes.c_float * len(importances))(*importances.tolist())
        entry.size = len(importances)
    return array

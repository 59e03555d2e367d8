"""Layout of fused experts: one three-dimensional parameter holds a matrix per expert.

    (experts, N outputs, K inputs)    most architectures
    (experts, K inputs, N outputs)    "transposed": gpt-oss, Llama 4

Classes that transformers runs through its experts interface declare the layout (`is_transposed`). For other
classes it follows from the sizes: the first matrices read the residual stream, and the last ones write to it,
so one dimension is the hidden size. Square matrices fit both layouts, but all instances of a class have the
same one, so a single instance that is not square decides. Without such evidence the layout stays unknown, and
the run is red.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READ = ("gate_up_proj", "gate_proj", "up_proj", "w1", "w3")  # matrices whose inputs are the residual stream
_WRITE = ("down_proj", "w2")  # matrices whose outputs are added to it
_SIZES = (("input_size", "output_size"), ("in_features", "out_features"))  # attributes of a class


def is_declared(module: nn.Module) -> bool:
    """Return whether the class of `module` declares the layout of its experts."""
    return hasattr(module, "is_transposed")


def expert_layouts(model: PreTrainedModel) -> dict[str, bool]:
    """Return {name of a fused expert parameter: whether it is transposed} for every layout that is known."""
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    holders = [
        (name, module, parameters)
        for name, module in model.named_modules()
        if (parameters := _stacked(module))
    ]
    possible: dict[type, set[bool]] = {}
    for _, module, parameters in holders:
        if not is_declared(module):
            fits = possible.setdefault(type(module), {False, True})
            for name, parameter in parameters.items():
                fits &= _fitting(module, name, tuple(parameter.shape), width)
    found: dict[str, bool] = {}
    for owner, module, parameters in holders:
        fits = {bool(module.is_transposed)} if is_declared(module) else possible[type(module)]
        if len(fits) == 1:
            (transposed,) = fits
            found |= dict.fromkeys((f"{owner}.{name}" for name in parameters), transposed)
    return found


def _stacked(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own parameters that may hold one matrix per expert."""
    return {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and not name.endswith("bias")
    }


def _fitting(module: nn.Module, name: str, shape: tuple[int, ...], width: int | None) -> set[bool]:
    """Return the layouts that the sizes of one parameter allow; none for a parameter that is not known."""
    _, rows, columns = shape
    for inputs, outputs in _SIZES:
        sizes = getattr(module, inputs, None), getattr(module, outputs, None)
        if None not in sizes:
            return {
                transposed
                for transposed, found in ((False, (columns, rows)), (True, (rows, columns)))
                if found == sizes
            }
    if name in _READ:
        return {each for each, inputs in ((False, columns), (True, rows)) if inputs == width}
    if name in _WRITE:
        return {each for each, outputs in ((False, rows), (True, columns)) if outputs == width}
    return set()

"""Other people's quantizers, one file each, behind one verb: `load(library).apply(model, recipe, progress) ->
list[Row]`.

Nothing here imports a library until it is asked to quantize; `available` only looks whether it is there.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from torch import nn

from qcore.base.errors import UnavailableError
from qcore.base.progress import Progress
from qcore.base.registry import unknown
from qcore.recipes import Recipe
from qcore.recipes.ledger import Row

# name of the file here: (what must be importable, what to install, what people call it)
LIBRARIES = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao", "torchao"),
    "torch_dynamic": ("torch.ao.quantization", "torch", "torch.ao"),
    "quanto": ("optimum.quanto", "optimum-quanto", "optimum-quanto"),
    "onnxruntime": ("onnxruntime", "onnxruntime onnx onnxscript", "ONNX Runtime"),
}


class Backend(Protocol):
    """What each file of this package offers."""

    def available(self) -> str | None:
        """None if the library can be used here, else one sentence that says why not."""

    def apply(self, model: nn.Module, recipe: Recipe, progress: Progress, quantize=None) -> list[Row]:
        """Quantize `model` in place; a row for each of its tensors. `quantize` applies a recipe of ours, for
        engines that run our codes. Raises `NotAppliedError` if a layer did not change."""


def load(library: str) -> Backend:
    """The backend called `library`. Raises `InputError` for an unknown name, `UnavailableError` if it cannot
    be used here."""
    if reason := available(library):
        raise UnavailableError(reason)
    return import_module(f"qcore.engines.{library}")


def available(library: str) -> str | None:
    """None if `library` can be used here, else one sentence that says why not. Cheap: the library itself is
    not imported."""
    if library not in LIBRARIES:
        raise unknown("library", library, LIBRARIES)
    return import_module(f"qcore.engines.{library}").available()


def missing(library: str) -> str | None:
    """One sentence if the package that `library` needs is not installed, else None."""
    package, project, title = LIBRARIES[library]
    try:
        found = find_spec(package)
    except ModuleNotFoundError:  # the parent package is missing
        found = None
    return None if found else f"{title} is not installed here. Install it with: pip install {project}"

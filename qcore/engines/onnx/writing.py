"""From a model and a recipe to a graph on disk and its ledger's rows, for both comparison and export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.engines.onnx import accounts, dynamic, graph
from qcore.formats.kinds import Format
from qcore.layers.select import select
from qcore.recipes import Engine, Float, Recipe, parse
from qcore.recipes.ledger import Ledger, LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Quantize = Callable[..., Ledger]  # quantize(model, recipe, progress=...)
SOURCE = {"onnx-int4": "int4-g64"}  # qcore's recipe with the same codes


@dataclass(frozen=True)
class Written:
    """The file, a row per tensor, and qcore's recipe `own` whose codes it holds (None: float32, or codes
    chosen by ONNX Runtime)."""

    path: Path
    rows: tuple[LedgerRow, ...]
    own: Recipe | None


def source(recipe: Recipe) -> Recipe | None:
    """Return qcore's recipe whose codes the ONNX form of `recipe` holds; None for float32 and for codes
    chosen by ONNX Runtime.

    Raise `InputError` for a recipe without an ONNX form.
    """
    if recipe.name in SOURCE:
        return parse(SOURCE[recipe.name]).with_modules(skip=recipe.modules.skip)
    if recipe.name in ("fp32", "onnx-fp32", "onnx-int8"):
        return None
    weights = recipe.weights
    formats = (weights,) if isinstance(weights, Format) else getattr(weights, "candidates", ())
    if formats and all(format.even and not (format.affine or format.signed) for format in formats):
        return recipe
    what = "a table of values" if any(not format.even for format in formats) else "a type of llama.cpp"
    what = "another library's format" if isinstance(weights, Engine) else what
    what = "a 16-bit form" if isinstance(weights, Float) else what
    raise InputError(
        f"{recipe.name} is {what}, which has no ONNX form. "
        "Use fp32, onnx-int8, or integers such as int8 or int4-g64."
    )


def write(
    model: PreTrainedModel,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    quantize: Quantize,
    rows: tuple[LedgerRow, ...] | None = None,
) -> Written:
    """Export `model`, which is consumed, into `folder`. `quantize` applies the recipe of qcore whose codes
    the graph holds. `rows` is the ledger of a model that is already quantized by qcore.

    Raise `InputError` for a model or a recipe that cannot be exported.
    """
    own = source(recipe)
    if reason := graph.unsupported(model):
        raise InputError(reason)
    tensors = accounts.before(model) if rows is None else [(row, row.shares) for row in rows]
    targets = frozenset(
        target.name for target in select(model, recipe).targets if target.kind in ("linear", "conv1d")
    )
    if own is not None and rows is None:
        rows = quantize(model, own, progress=progress).rows
    progress(0, 0, "exporting to ONNX")
    if recipe.name == "onnx-int8":
        plain = folder / "fp32"
        plain.mkdir()
        whole = graph.export(model, plain)
        progress(0, 0, "quantize_dynamic")
        path = dynamic.quantize(whole, folder / graph.FILE, recipe.modules.skip)
        shutil.rmtree(plain)
        return Written(path, tuple(accounts.rows(path, tensors, dynamic.label, targets)), None)
    path = graph.export(model, folder)
    if own is None:
        return Written(
            path, tuple(accounts.rows(path, tensors, lambda name, parts: ("onnx-fp32", None))), None
        )
    known = {row.name: row for row in rows or ()}
    return Written(
        path,
        tuple(
            accounts.rows(
                path, tensors, lambda name, parts: (known[name].format, known[name].reason), targets
            )
        ),
        own,
    )

"""`prune`: remove weights or parts of one model, and save the result."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qcore import library, recipes
from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.registry import unknown
from qcore.base.turn import heavy_turn
from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.formats.mixture import Mixture
from qcore.formats.sparse import break_even
from qcore.layers.modules import QuantExperts, QuantizedModule
from qcore.library import Loaded, plain, safetensors
from qcore.library.saving import check_folder
from qcore.pruning import ledger as ledgers
from qcore.pruning import masks, structured
from qcore.quantization.calibration import Calibration, load_calibration
from qcore.quantization.calibration.text import calibration_text
from qcore.recipes import Recipe
from qcore.training.qat import check_recipe
from qcore.verbs import made
from qcore.verbs.command_words import words_of
from qcore.verbs.prepare import find_original, load, quantize, saving
from qcore.verbs.record import stored_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNSTRUCTURED, STRUCTURED = ("wanda", "magnitude", "2:4"), ("neurons", "heads", "layers")
SCORED = 16384  # tokens of calibration text for the scores


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Prune `amount` of a model by `method` ("wanda", "magnitude", "2:4", "neurons", "heads", "layers").

    A `recipe` also quantizes the model; weights are pruned `order` "before" or "after" quantization. A
    quantized model, or any model with `sparse`, stores no zeros; otherwise the result is an ordinary model
    that contains zeros. Scores are computed from `tokens` of the text `calibration` (None: the packaged one).
    Raise `InputError` for contradictory options.
    """

    method: str
    amount: float = 0.5
    recipe: Recipe | None = None
    order: str = "before"
    sparse: bool = False
    calibration: str | None = None
    tokens: int = SCORED

    def __post_init__(self):
        if self.method not in (*UNSTRUCTURED, *STRUCTURED):
            raise unknown("pruning method", self.method, (*UNSTRUCTURED, *STRUCTURED))
        _ = self.what
        if self.order not in ("before", "after"):
            raise InputError(
                f"order is {self.order!r}, but it must be before or after: "
                "weights are pruned before or after quantization."
            )
        if self.method in STRUCTURED and (self.recipe is not None or self.sparse):
            raise InputError(
                f"Pruning {self.method} leaves an ordinary model without zeros. Leave out the recipe and "
                "sparse storage, and quantize the result."
            )
        if self.recipe is not None:
            self._check_recipe(self.recipe)
        elif self.order == "after":
            raise InputError("The order after needs a recipe: it prunes weights after quantization.")

    def _check_recipe(self, recipe: Recipe) -> None:
        check_recipe(recipe)
        if isinstance(recipe.weights, Budget | Mixture):
            raise InputError(
                f"{recipe.name} chooses formats itself. Pruning needs a recipe with one format, such as "
                "int4-g64."
            )
        if self.order == "after" and recipe.prepare != "none":
            raise InputError(
                f"{recipe.name} rotates the model first, so the scores of the original weights do not apply. "
                "Choose the order before."
            )
        if isinstance(recipe.weights, Format):
            masks.check_format(recipe.weights)

    @property
    def what(self) -> masks.Amount | structured.Cut:
        """Return the weights or parts to prune. Raise `InputError` for an amount out of range."""
        if self.method in UNSTRUCTURED:
            return masks.Amount(self.method, self.amount)
        return structured.Cut(self.method, self.amount)


def run(
    model: str,
    options: Prune,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    compare: bool = False,
    progress: Progress,
) -> dict:
    """Prune `model`, save it in `folder`, and return its size, the share removed and, with `compare`, its
    figures beside the original's. Raise `InputError` for unusable input."""
    folder = Path(folder)
    check_folder(folder, overwrite=overwrite)
    calibration_text(options.calibration)
    checkpoint = find_original(model, revision, folder=folder, progress=progress)
    with heavy_turn(progress):
        loaded = load(checkpoint, progress=progress)
        began = time.perf_counter()
        text = load_calibration(options.calibration, loaded.tokenizer, tokens=options.tokens)
        what = options.what
        if isinstance(what, masks.Amount):
            result = _prune_weights(loaded, options, what, text, folder, overwrite, progress)
        else:
            result = _prune_parts(loaded, options, what, text, folder, overwrite, progress)
        about = {"method": options.method, "amount": options.amount, **result}
        seconds = time.perf_counter() - began
        result = {"model": model, "folder": str(folder), "seconds": seconds, **about}
        result |= made.compared(compare, checkpoint, folder, options.recipe, progress)
        about = {each.name: getattr(options, each.name) for each in fields(options)}
        text = about.pop("calibration")
        words = words_of("prune", model, folder, **about, text=text, revision=revision)
        return result | made.with_card(result, folder, checkpoint, words)


def _prune_weights(
    loaded: Loaded,
    options: Prune,
    what: masks.Amount,
    text: Calibration,
    folder: Path,
    overwrite: bool,
    progress: Progress,
) -> dict:
    reads, recipe = options.method != "magnitude", options.recipe
    ids = text.ids if reads else None
    about = {
        "kind": "prune",
        "method": what.method,
        "share": what.share,
        "calibration": text.record if reads else None,
    }
    origin = loaded.checkpoint.origin
    if recipe is None or options.order == "before":
        kept = masks.prune(loaded.model, what, ids, progress)
    if recipe is not None:
        # no resume: pruned blocks must not be kept under the checkpoint's digest
        resume = options.order == "after"
        ledger = quantize(loaded, recipe, calibration=text, resume=resume, progress=progress).ledger
        if options.order == "after":
            kept = masks.prune(_twin(loaded), what, ids, progress)
        masks.prune_codes(loaded.model, kept)
        ledger = ledgers.of_codes(loaded.model, ledger, kept)
    elif options.sparse:
        recipe, ledger = recipes.parse("fp32"), ledgers.of_floats(loaded.model, kept, f"fp32 {what.method}")
    shares = masks.sparsity(kept)
    zeros = sum(shares[name] * sum(mask.numel() for mask in kept[name]) for name in kept)
    result = {
        "zeros": round(zeros),
        "sparsity": zeros / sum(mask.numel() for each in kept.values() for mask in each),
    }
    if recipe is None:
        with saving(folder, progress):
            record = about | {"from": origin} | result
            plain.save(loaded.model, loaded.tokenizer, record, folder, overwrite=overwrite)
        return result | {"stored_bytes": stored_bytes(loaded)}
    read = text.record if reads or recipe.calibrated else None
    ledger = replace(ledger, calibration=read, pruning=about | result)
    names = ledgers.sparse_names(loaded.model, kept)
    with saving(folder, progress):
        safetensors.save(
            loaded.model,
            loaded.tokenizer,
            recipe,
            ledger,
            folder,
            overwrite=overwrite,
            sparse=names,
            origin=origin,
        )
    bits = getattr(recipe.weights, "bits", 32)
    return result | {
        "recipe": recipe.name,
        "stored_bytes": ledger.stored_bytes,
        "break_even": break_even(bits),
    }


def _twin(quantized: Loaded) -> PreTrainedModel:
    """Return a float model with the dequantized weights of the quantized one."""
    twin = library.load(quantized.checkpoint).model
    parameters = dict(twin.named_parameters())
    for name, module in quantized.model.named_modules():
        if isinstance(module, QuantExperts):
            value = torch.stack([module[i] for i in range(len(module.experts))])
            parameters[name].data = value
        elif isinstance(module, QuantizedModule) and f"{name}.weight" in parameters:
            value, own = module.weight, parameters[f"{name}.weight"]
            own.data = value.T.contiguous() if own.shape != value.shape else value
    for name, value in quantized.model.named_parameters():
        if name in parameters and "experts" not in name:
            parameters[name].data = value.detach()
    return twin


def _prune_parts(
    loaded: Loaded,
    options: Prune,
    what: structured.Cut,
    text: Calibration,
    folder: Path,
    overwrite: bool,
    progress: Progress,
) -> dict:
    before = sum(parameter.numel() for parameter in loaded.model.parameters())
    smaller, went = structured.cut(loaded.model, what, text.ids, progress)
    after = sum(parameter.numel() for parameter in smaller.parameters())
    result = {"parameters_before": before, "parameters": after, "removed": 1 - after / before}
    record = {
        "kind": "prune",
        "method": what.method,
        "share": what.share,
        "calibration": text.record,
        **went,
        **result,
        "from": loaded.checkpoint.origin,
    }
    with saving(folder, progress):
        plain.save(smaller, loaded.tokenizer, record, folder, overwrite=overwrite)
    return result | {"stored_bytes": sum(parameter.nbytes for parameter in smaller.parameters())}

"""Models made from others: trained in quantized form, pruned, distilled. Asked for by name, saved into a
folder that is a model.

Each function waits for its turn, and returns what came out, ready for JSON. With `compare`, the model that it
began with and the one that came out are measured by the same text and on the same machine: stored bytes,
perplexity, divergence, decode speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.verbs.single import stored_bytes, waiting

COMPARED, WINDOW = 2048, 256  # tokens of the evaluation text that both models are scored on
PROMPT, NEW, TURNS = 64, 16, 3  # tokens of the speed measurement, and how often each model has its turn
SCORED = 16384  # tokens of calibration text that pruning reads
UNSTRUCTURED, STRUCTURED = ("wanda", "magnitude", "2:4"), ("neurons", "heads", "layers")


def train_quantized(
    model: str,
    recipe,
    options,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    compare: bool = False,
    progress: Progress,
    watch=None,
) -> dict:
    """Quantization-aware training (`qcore.training.qat.Qat` options) of `model` in `recipe`, saved in
    `folder`.

    After a kill the same call goes on. Raises `InputError` before anything is loaded for what cannot be used.
    """
    from qcore import planning, recipes
    from qcore.library import safetensors
    from qcore.training import qat

    qat.check_recipe(recipe)
    safetensors.check_target(recipe, Path(folder), overwrite=overwrite)
    checkpoint = _original(model, revision, folder, progress)
    with heavy_turn(waiting(progress)):
        planning.check_fits(checkpoint, recipes.parse("fp32"), tokens=options.window, window=options.window)
        began = time.perf_counter()
        made, history, kept = qat.run(checkpoint, recipe, options, progress, device=device, watch=watch)
        progress(0, 0, f"saving to {folder}")
        parts, origin = (made.model, made.tokenizer, recipe, made.ledger), checkpoint.origin
        _saving(folder, lambda: safetensors.save(*parts, folder, overwrite=overwrite, origin=origin))
        kept.remove()
        result = _about(model, folder, made, began, recipe=recipe.name, history=history.record())
        return result | ({"compared": _compare(checkpoint, folder, recipe, progress)} if compare else {})


def prune(
    model: str,
    method: str,
    amount: float,
    folder: Path,
    *,
    recipe=None,
    order: str = "before",
    sparse: bool = False,
    calibration: str | None = None,
    tokens: int = SCORED,
    revision: str | None = None,
    overwrite: bool = False,
    compare: bool = False,
    progress: Progress,
    watch=None,
) -> dict:
    """Prune `model` by `method` ("wanda", "magnitude", "2:4", "neurons", "heads", "layers"), `amount` of it,
    and save it in `folder`.

    With a `recipe` it is quantized, too; pruned weights are chosen `order` "before" or "after". Then, and
    where `sparse` says so, zeros are not stored; otherwise the folder is an ordinary one with zeros in it.
    Raises `InputError` for what cannot be used.
    """
    from qcore import library, planning, recipes
    from qcore.library.saving import check_folder
    from qcore.quantization.calibration.text import calibration_text

    what = check_pruning(method, amount, recipe, order, sparse)
    check_folder(Path(folder), overwrite=overwrite)
    calibration_text(calibration)
    checkpoint = _original(model, revision, folder, progress)
    with heavy_turn(waiting(progress)):
        planning.check_fits(checkpoint, recipes.parse("fp32"), tokens=1, window=1)
        loaded = library.load(checkpoint, progress=progress)
        began = time.perf_counter()
        cut = _cut_weights if method in UNSTRUCTURED else _cut_parts
        result = cut(
            loaded, what, recipe, order, sparse, calibration, tokens, Path(folder), overwrite, progress
        )
        result = _about(model, folder, None, began, method=method, amount=amount, **result)
        return result | ({"compared": _compare(checkpoint, folder, recipe, progress)} if compare else {})


def distill(
    model: str,
    options,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    compare: bool = False,
    progress: Progress,
    watch=None,
) -> dict:
    """A student of `model` (`qcore.training.distill.Distill` options), trained and saved in `folder` as an
    ordinary model. After a kill the same call goes on. Raises `InputError` for what cannot be used."""
    from qcore import planning, recipes
    from qcore.library import plain
    from qcore.library.saving import check_folder
    from qcore.training import distill as training

    check_folder(Path(folder), overwrite=overwrite)
    checkpoint = _original(model, revision, folder, progress)
    with heavy_turn(waiting(progress)):
        planning.check_fits(checkpoint, recipes.parse("fp32"), tokens=options.window, window=options.window)
        began = time.perf_counter()
        made, record, kept = training.run(checkpoint, options, progress, device=device, watch=watch)
        progress(0, 0, f"saving to {folder}")
        _saving(folder, lambda: plain.save(made.model, made.tokenizer, record, folder, overwrite=overwrite))
        kept.remove()
        about = {
            "kept_layers": record["kept_layers"],
            "trained_seconds": record["trained_seconds"],
            "history": record["history"],
        }
        result = _about(model, folder, made, began, **about)
        return result | ({"compared": _compare(checkpoint, folder, None, progress)} if compare else {})


# -- pruning -------------------------------------------------------------------------------------------------


def check_pruning(method: str, amount: float, recipe, order: str, sparse: bool):
    """What is to go, as a `masks.Amount` or a `structured.Cut`. Raises `InputError` for what makes no sense
    together."""
    from qcore.base.registry import unknown
    from qcore.formats.budget import Budget
    from qcore.pruning.masks import Amount, check_format
    from qcore.pruning.structured import Cut
    from qcore.training.qat import check_recipe

    if method not in (*UNSTRUCTURED, *STRUCTURED):
        raise unknown("pruning method", method, (*UNSTRUCTURED, *STRUCTURED))
    what = Amount(method, amount) if method in UNSTRUCTURED else Cut(method, amount)
    if order not in ("before", "after"):
        raise InputError(
            f"order is {order!r}, but it must be before or after: when weights are pruned, counted from quantization."
        )
    if method in STRUCTURED and (recipe is not None or sparse):
        raise InputError(
            f"Pruning {method} leaves an ordinary model without zeros. Leave out --recipe and --sparse, and quantize the result."
        )
    if recipe is None:
        if order == "after":
            raise InputError(
                "--order after belongs to --recipe: weights are pruned after they are quantized."
            )
        return what
    check_recipe(recipe)
    if isinstance(recipe.weights, Budget):
        raise InputError(
            f"{recipe.name} chooses formats itself. Choose one format, such as int4-g64, for a model that is pruned."
        )
    if order == "after" and recipe.prepare != "none":
        raise InputError(
            f"{recipe.name} rotates the model first, so its weights are no longer those that pruning looks at. Prune before."
        )
    check_format(recipe.weights)
    return what


def _cut_weights(
    loaded, what, recipe, order, sparse, calibration, tokens, folder, overwrite, progress
) -> dict:
    from qcore import recipes
    from qcore.formats.sparse import break_even
    from qcore.library import plain, safetensors
    from qcore.pruning import ledger as ledgers
    from qcore.pruning import masks
    from qcore.quantization import convert
    from qcore.quantization.calibration import load_calibration

    text = load_calibration(calibration, loaded.tokenizer, tokens=tokens)
    reads = what.method != "magnitude"
    about = {
        "kind": "prune",
        "method": what.method,
        "share": what.share,
        "calibration": text.record if reads else None,
    }
    origin = loaded.checkpoint.origin
    if recipe is None or order == "before":
        kept = masks.prune(loaded.model, what, text.ids if reads else None, progress)
    if recipe is not None:
        ledger = convert.quantize(
            loaded.model, recipe, progress=progress, calibration=text if recipe.calibrated else None
        )
        if order == "after":
            kept = masks.prune(_twin(loaded), what, text.ids if reads else None, progress)
        masks.prune_codes(loaded.model, kept)
        ledger = ledgers.of_codes(loaded.model, ledger, kept)
    elif sparse:
        recipe, ledger = recipes.parse("fp32"), ledgers.of_floats(loaded.model, kept, f"fp32 {what.method}")
    shares = masks.sparsity(kept)
    zeros = sum(shares[name] * sum(mask.numel() for mask in kept[name]) for name in kept)
    result = {
        "zeros": round(zeros),
        "sparsity": zeros / sum(mask.numel() for each in kept.values() for mask in each),
    }
    if recipe is None:
        _saving(
            folder,
            lambda: plain.save(
                loaded.model, loaded.tokenizer, about | {"from": origin} | result, folder, overwrite=overwrite
            ),
        )
        return result | {"stored_bytes": stored_bytes(loaded)}
    ledger = replace(
        ledger, calibration=text.record if reads or recipe.calibrated else None, pruning=about | result
    )
    names = ledgers.sparse_names(loaded.model, kept)
    parts = (loaded.model, loaded.tokenizer, recipe, ledger)
    _saving(
        folder, lambda: safetensors.save(*parts, folder, overwrite=overwrite, sparse=names, origin=origin)
    )
    bits = getattr(recipe.weights, "bits", 32)
    return result | {
        "recipe": recipe.name,
        "stored_bytes": ledger.stored_bytes,
        "break_even": break_even(bits),
    }


def _twin(loaded):
    """A float model that computes with what the codes of the quantized one stand for."""
    import torch

    from qcore import library
    from qcore.layers.modules import QuantExperts, QuantizedModule

    twin = library.load(loaded.checkpoint).model
    parameters = dict(twin.named_parameters())
    for name, module in loaded.model.named_modules():
        if isinstance(module, QuantExperts):
            value = torch.stack([module[i] for i in range(len(module.experts))])
            parameters[name].data = value
        elif isinstance(module, QuantizedModule) and f"{name}.weight" in parameters:
            value = module.weight
            parameters[f"{name}.weight"].data = (
                value.T.contiguous() if parameters[f"{name}.weight"].shape != value.shape else value
            )
    for name, value in loaded.model.named_parameters():
        if name in parameters and "experts" not in name:
            parameters[name].data = value.detach()
    return twin


def _cut_parts(loaded, what, recipe, order, sparse, calibration, tokens, folder, overwrite, progress) -> dict:
    from qcore.library import plain
    from qcore.pruning import structured
    from qcore.quantization.calibration import load_calibration

    text = load_calibration(calibration, loaded.tokenizer, tokens=tokens)
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
    }
    record |= {"from": loaded.checkpoint.origin}
    _saving(folder, lambda: plain.save(smaller, loaded.tokenizer, record, folder, overwrite=overwrite))
    return result | {"stored_bytes": sum(parameter.nbytes for parameter in smaller.parameters())}


# -- what all of them do -------------------------------------------------------------------------------------


def _original(model: str, revision: str | None, folder: Path, progress: Progress):
    """The checkpoint of a model that may be changed. Raises `InputError` for a quantized one, and for a
    `folder` that holds the model."""
    from qcore import library

    checkpoint = library.resolve(model, revision, progress=progress)
    if checkpoint.is_quantized:
        raise InputError(f"{model} is quantized already. Start from the original model instead.")
    if Path(folder).exists() and checkpoint.folder.resolve().is_relative_to(Path(folder).resolve()):
        raise InputError(f"{folder} holds the model itself. Choose another folder.")
    return checkpoint


def _saving(folder: Path, save: Callable[[], object]) -> None:
    try:
        save()
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _about(model: str, folder: Path, made, began: float, **more) -> dict:
    size = {} if made is None else {"stored_bytes": stored_bytes(made)}
    return {"model": model, "folder": str(folder), **size, "seconds": time.perf_counter() - began, **more}


def _compare(checkpoint, folder: Path, recipe, progress: Progress) -> dict:
    """{"before", "rounded" (with a recipe that reads no text), "after"}: figures of each, and the conditions
    of the comparison."""
    from qcore import library
    from qcore.base import texts
    from qcore.quantization import convert
    from qcore.training.teacher import Teacher

    original = library.load(checkpoint)
    content = texts.load_text(None)
    ids = texts.tokenize(content, original.tokenizer, limit=COMPARED)
    ids = ids[: len(ids) // WINDOW * WINDOW or len(ids)].view(-1, min(WINDOW, len(ids)))
    teacher = Teacher(original.model)
    progress(0, 4, "measuring the model it began with")
    loaded, found = {"before": original}, {"before": _figures(original, teacher, ids, None)}
    if recipe is not None and not recipe.calibrated:
        progress(1, 4, f"measuring {recipe.name} without it")
        loaded["rounded"] = library.load(checkpoint)
        ledger = convert.quantize(loaded["rounded"].model, recipe)
        found["rounded"] = _figures(
            loaded["rounded"], teacher, ids, sum(row.bytes_after for row in ledger.rows)
        )
    progress(2, 4, "measuring the model that came out")
    loaded["after"] = library.load(str(folder))
    found["after"] = _figures(loaded["after"], teacher, ids, None)
    progress(3, 4, "measuring speed")
    for name, speed in _speeds(loaded).items():
        found[name]["decode_tok_s"] = speed
    return found | {
        "text": content.name,
        "tokens": ids.numel(),
        "window": ids.shape[1],
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
    }


def _figures(loaded, teacher, ids, size: int | None) -> dict:
    from qcore.training.judging import judge

    divergence, perplexity = judge(teacher, ids, "kl")(loaded.model)
    return {
        "stored_bytes": stored_bytes(loaded) if size is None else size,
        "perplexity": perplexity,
        "kl_mean": divergence,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
    }


def _speeds(loaded: dict) -> dict[str, float]:
    """Decode speed of each of the models, tokens a second: the median of turns that they take one after
    another, so that what else the machine does meets all of them."""
    from qcore.measurement.throughput import measure

    turns = [
        {name: measure(each.model, PROMPT, NEW, repeats=1).decode_tok_s for name, each in loaded.items()}
        for _ in range(TURNS)
    ]
    return {name: median(turn[name] for turn in turns) for name in loaded}

"""One model, one measurement, in this process: what `quantize`, `eval` and `bench` do. A saved quantized
folder is a model, too.

Each returns its figures and a `record` with everything they depend on, ready for JSON. They wait for their
turn like any run.
"""

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.executor import Engine
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.formats.kv import NONE, Form, form_named
from qcore.recipes import Recipe
from qcore.recipes.spec import check_limits, check_minutes

LONGEST_NAME = 80
HERE = Engine()


def quantize_to(
    model: str,
    recipe: Recipe,
    folder: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    calibration: str | None = None,
    calibration_tokens: int = 16384,
    calibration_minutes: float | None = None,
    stream: bool = False,
    progress: Progress,
    engine: Engine = HERE,
) -> dict:
    """Apply `recipe` to `model` and save it in `folder`, which appears complete or not at all. With `stream`
    the model is never held in memory: one tensor after another goes from its file into a shard, and these can
    be spread over the machines of an `engine`.

    Calibrated methods read `calibration_tokens` of the text `calibration` (None: the packaged one). After a
    kill the same command goes on at the block, or with `stream` at the shard, where it was stopped.

    Raises `InputError` before anything is loaded if the recipe is another library's, if `folder` holds
    something (`overwrite` allows a model that qcore saved there), or if the model cannot be used or does not
    fit.
    """
    from qcore import library, planning
    from qcore.library import safetensors
    from qcore.quantization import convert
    from qcore.quantization.calibration import load_calibration, unfinished
    from qcore.quantization.calibration.text import calibration_text
    from qcore.streaming import quantizing as streaming
    from qcore.verbs.checks import check_skips

    if not (stream or engine.is_local):
        raise InputError(
            "Only a streamed quantization can be spread over machines. Add --stream, or leave out --engine."
        )
    engine.check()
    folder = Path(folder)
    safetensors.check_target(recipe, folder, overwrite=overwrite)
    if stream:
        streaming.check(recipe)
    checkpoint = library.resolve(model, revision, progress=progress)
    if checkpoint.is_quantized:
        raise InputError(f"{model} is quantized already. Quantize the original model instead.")
    if folder.exists() and checkpoint.folder.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} holds the model itself. Choose another folder.")
    check_skips(checkpoint, (recipe,))
    check_limits(calibration_tokens=calibration_tokens)
    check_minutes(calibration_minutes)
    if recipe.calibrated:
        calibration_text(calibration)
    began = time.perf_counter()
    if stream:
        with heavy_turn(waiting(progress)):
            ledger = streaming.quantize(
                checkpoint, recipe, folder, overwrite=overwrite, progress=progress, engine=engine
            )
        return _saved(model, folder, ledger, time.perf_counter() - began)
    with heavy_turn(waiting(progress)):
        planning.check_fits(checkpoint, recipe, tokens=1, window=1)
        loaded = library.load(checkpoint, progress=progress)
        began = time.perf_counter()
        text = None
        if recipe.calibrated:
            text = load_calibration(
                calibration, loaded.tokenizer, tokens=calibration_tokens, minutes=calibration_minutes
            )
        ledger = convert.quantize(
            loaded.model,
            recipe,
            progress=progress,
            calibration=text,
            work=unfinished(),
            identity=checkpoint.digest,
        )
        quantize_s = time.perf_counter() - began
        progress(0, 0, f"saving to {folder}")
        try:
            safetensors.save(
                loaded.model,
                loaded.tokenizer,
                recipe,
                ledger,
                folder,
                overwrite=overwrite,
                origin=checkpoint.origin,
            )
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return _saved(model, folder, ledger, quantize_s)


def _saved(model: str, folder: Path, ledger, quantize_s: float) -> dict:
    return {
        "model": model,
        "recipe": ledger.recipe,
        "folder": str(folder),
        "stored_bytes": ledger.stored_bytes,
        "bits_per_weight": ledger.bits_per_weight,
        "coverage": ledger.coverage,
        "quantize_s": quantize_s,
    }


def evaluate_once(
    model: str,
    *,
    revision: str | None,
    text: str | None,
    tokens: int | None,
    window: int,
    stride: int | None,
    device: str,
    progress: Progress,
    kv: str = NONE,
) -> dict:
    """Perplexity of `model` on the first `tokens` tokens of `text` (both None: all of the packaged text),
    read through a cache in the form `kv`."""
    from qcore.base import texts
    from qcore.evaluation import evaluate
    from qcore.library.plain import check_judged
    from qcore.verbs.pipeline import describe, scored_bytes

    check_limits(window=window, stride=stride, **({} if tokens is None else {"tokens": tokens}))
    content, form = texts.load_text(text), form_named(kv)
    with heavy_turn(waiting(progress)):
        began = time.time()
        loaded = load_once(model, revision, device, window, progress, form)
        ids = texts.tokenize(content, loaded.tokenizer, limit=tokens)
        check_judged(loaded, content.name, content.sha256, ids)
        size = scored_bytes(ids, loaded.tokenizer)
        result = evaluate(
            loaded.model, ids, window=window, stride=stride, text_bytes=size, progress=progress, kv=form
        ).to_dict()
    detail = {name: result.pop(name) for name in ("window_nll", "window_tokens", "divergence")}
    words = [
        "eval",
        model,
        *options(text=text, window=window, stride=stride, tokens=tokens, revision=revision, **kv_option(kv)),
    ]
    about = {
        "device": device,
        "recipe": recipe_of(loaded),
        "kv": {"name": NONE} if form is None else form.to_dict(),
    }
    record = describe(loaded, content) | times(began, words) | detail | about
    return {"model": model, **result, "stored_bytes": stored_bytes(loaded), "record": record}


def bench_once(
    model: str,
    *,
    revision: str | None,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    threads: int | None,
    seed: int,
    device: str,
    progress: Progress,
    kv: str = NONE,
) -> dict:
    """Prefill and decode speed of `model` with a cache in the form `kv`, the share of the machine's read
    bandwidth that decoding reaches ("bandwidth_share", None on an accelerator), and the most memory that this
    process took."""
    import torch

    from qcore.measurement.environment import read_bandwidth
    from qcore.measurement.memory import PeakMemory
    from qcore.measurement.throughput import measure
    from qcore.measurement.traffic import bytes_a_token
    from qcore.verbs.pipeline import describe, execution, kv_record

    check_limits(
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, threads=threads, seed=seed
    )
    form = form_named(kv)
    if threads:
        torch.set_num_threads(threads)
    with heavy_turn(waiting(progress)):
        began = time.time()
        with PeakMemory() as loading:
            loaded = load_once(model, revision, device, prompt_tokens + new_tokens, progress, form)
        with PeakMemory() as running:
            speed = measure(
                loaded.model,
                prompt_tokens,
                new_tokens,
                repeats=repeats,
                seed=seed,
                progress=progress,
                kv=form,
            )
            result = speed.to_dict()
        read = bytes_a_token(loaded.model, ledger_of(loaded).rows)
        bandwidth = read_bandwidth() if device == "cpu" else None  # last, so that its buffer is in no figure
    words = [
        "bench",
        model,
        *options(
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            seed=seed,
            revision=revision,
            **kv_option(kv),
        ),
    ]
    samples = {"samples": result.pop("samples")}
    record = (
        describe(loaded, threads=threads)
        | times(began, words)
        | samples
        | {"device": device, "seed": seed, "recipe": recipe_of(loaded)}
    )
    record |= {
        "bytes_a_token": read,
        "kv": kv_record(form, speed),
        "execution": execution(loaded.model, form),
    }
    record["environment"]["read_bandwidth"] = bandwidth
    share = result["decode_tok_s"] * read / bandwidth if bandwidth else None
    peaks = {"peak_load_bytes": loading.peak_bytes, "peak_run_bytes": running.peak_bytes}
    return {
        "model": model,
        **result,
        "bandwidth_share": share,
        "stored_bytes": stored_bytes(loaded),
        **peaks,
        "record": record,
    }


def safe_name(model: str, recipe: str) -> str:
    """A folder name made from a model and a recipe that is harmless on every system: lower-case letters,
    digits, dots and hyphens.

    >>> safe_name("../../Org/Some Model", "int4-g64")
    'some-model-int4-g64'
    """
    stem = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    stem = re.sub(r"[^a-z0-9.]+", "-", stem).strip("-.")[:LONGEST_NAME] or "model"
    return f"{stem}-{recipe}"  # never a reserved device name, because of the recipe


def load_once(
    model: str, revision: str | None, device: str, window: int, progress: Progress, kv: Form | None = None
):
    """Resolve, check that it fits and can keep a cache in the form `kv`, and load."""
    from qcore import library, planning
    from qcore.recipes import parse
    from qcore.verbs.checks import check_device, check_kv

    check_device(device)
    checkpoint = library.resolve(model, revision, progress=progress)
    check_kv(checkpoint, kv)
    if not checkpoint.is_quantized:
        planning.check_fits(checkpoint, parse("fp32"), tokens=window, window=window)
    return library.load(checkpoint, device=device, progress=progress)


def stored_bytes(loaded) -> int:
    """Bytes of the unique storages of the model as it was loaded."""
    return ledger_of(loaded).stored_bytes


def ledger_of(loaded):
    """The saved ledger, or one of a model that nothing was done to."""
    from qcore.layers.inventory import as_it_is

    return loaded.ledger or as_it_is(loaded.model, "as loaded")


def recipe_of(loaded) -> dict | None:
    """The recipe of a saved quantized model, as a dictionary."""
    return loaded.recipe.to_dict() if loaded.recipe else None


def times(began: float, words: list[str]) -> dict:
    """When a measurement began and ended, and the command that repeats it."""
    command = shlex.join(["python", "-m", "qcore", *words])
    return {"started_at": began, "finished_at": time.time(), "command": command}


def kv_option(kv: str) -> dict:
    """The option for `options`, nothing for the default."""
    return {} if kv == NONE else {"kv": kv}


def options(**values) -> list[str]:
    """Command-line options for the values that are set."""
    return [
        word
        for name, value in values.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def waiting(progress: Progress) -> Callable[[], None]:
    """What to call while another run has its turn."""
    return lambda: progress(0, 0, "waiting for another run to end")

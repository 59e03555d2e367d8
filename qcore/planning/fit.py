"""Estimate memory from headers and config alone; nothing is loaded.

    load     libraries + fp32 model + (the bytes of a 16-bit checkpoint, or work space for the largest weight)
    stream   libraries + the largest unquantized tensor, or a multiple of the largest quantized one (see
             streaming/quantizing.py)
    run      libraries + stored bytes + repacked or dequantized weights + KV cache + activations + logits

A bf16 checkpoint is loaded in fp32, the precision that CPUs compute in. Tensors stored in fp32 stay mapped,
and mapped pages count. During the first step the native kernels repack the codes, and the system may not have
reclaimed the old layout yet, so quantized weights count twice. The larger of load and run is compared with
the available memory: QCORE_MEMORY_LIMIT (bytes) if it is set, else what the machine and the control group
have left.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from qcore.base.errors import InputError, TooLargeError
from qcore.measurement.devices import free_bytes
from qcore.measurement.memory import available_bytes
from qcore.models import Checkpoint, meta_model
from qcore.planning import cache
from qcore.planning.stored import Stored, stored
from qcore.planning.types import Estimate
from qcore.recipes import ENGINES, METHODS, Engine, Float, Recipe, parse
from qcore.recipes.engines import variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIBRARIES = 380_000_000  # bytes that Python, torch and transformers hold before any model, as measured
# tokenizer, module objects and what reading them leaves behind, as measured with a small model
AROUND = 45_000_000
LOGIT_COPIES = 3  # logits, their logarithm of the softmax, and the baseline's
# Fusing experts that the file holds one by one: the memory that it takes besides both forms, and the memory
# that the system has not got back afterwards. Both are shares of the experts' fp32 bytes, as measured
FUSING, LEFT_BEHIND = 0.4, 0.45
# a piece of a kept tensor that is widened, and the tensors that wait to be written, as measured
STREAM_AROUND = 56_000_000
SMALLER = ("int8", "int4-g64", "int3", "int2")
KEPT = 256  # recipes per meta model whose bytes are kept
_sizes: WeakKeyDictionary[PreTrainedModel, dict[Recipe, Stored]] = WeakKeyDictionary()


def estimate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    tokens: int = 512,
    window: int = 512,
    users: int = 1,
    kv: cache.CacheFormat = cache.FORMATS["fp32"],
    scored: bool = True,
    available: int | None = None,
) -> Estimate:
    """Estimate the memory of `checkpoint` under `recipe`: `users` caches of `tokens` tokens in the format
    `kv`, activations of a prompt or `window` of that many tokens, and logits of all tokens if they are
    `scored`, else of the last ones.

    A quantized model keeps its own recipe. `available` defaults to `budget()`. Raise `InputError` for a
    checkpoint whose shapes contradict its config, or a skip pattern that matches nothing.
    """
    model = meta_model(checkpoint)
    config = model.config.get_text_config()
    weights = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    size = _as_it_is(checkpoint) if checkpoint.is_quantized else _counted(model, recipe)
    fused = 0 if checkpoint.is_quantized else _fused_bytes(checkpoint, model)
    full, work = _while_loading(checkpoint, recipe, 4 * weights, fused, size)
    base = LIBRARIES + AROUND
    libraries = base
    if isinstance(recipe.weights, Engine):
        libraries += ENGINES[recipe.weights.backend].loaded_bytes
    kv_size = cache.kv_bytes(cache.layout(model), tokens, users, kv)
    activations = activation_bytes(config, window, users, scored)
    again = _held_again(recipe, size) + round(LEFT_BEHIND * fused)
    available = budget() if available is None else available
    load = max(
        base + full + work, libraries + size.total
    )  # another library is loaded when the first layers have shrunk
    run = libraries + size.total + again + kv_size + activations
    arithmetic = (
        f"loading {_millions(weights)} weights needs {_gb(load)} "
        f"(as loaded {_gb(full)}, work space {_gb(work)}, libraries {_gb(base)}), "
        f"running needs {_gb(run)} (weights {_gb(size.total + again)}, "
        f"KV cache for {_tokens(tokens, users)} {_gb(kv_size)}, activations "
        f"and logits {_gb(activations)}, libraries {_gb(libraries)}), and {_gb(available)} are available"
    )
    return Estimate(
        stored_bytes=size.total,
        bits_per_weight=size.bits_per_weight,
        peak_load_bytes=load,
        peak_stream_bytes=_while_streaming(checkpoint, recipe, size),
        peak_run_bytes=run,
        kv_bytes=kv_size,
        activation_bytes=activations,
        libraries_bytes=libraries,
        available_bytes=available,
        fits=max(load, run) <= available,
        arithmetic=arithmetic,
    )


def _counted(model: PreTrainedModel, recipe: Recipe) -> Stored:
    """Return the stored bytes of a meta model, which nobody changes: they are counted once per recipe, not
    once per context and cache format."""
    known = _sizes.setdefault(model, {})
    size = known.get(recipe)
    if size is None:
        size = stored(model, recipe)
        if len(known) >= KEPT:
            known.clear()
        known[recipe] = size
    return size


def check_device_fits(
    checkpoint: Checkpoint,
    recipe: Recipe,
    device: str,
    *,
    tokens: int = 512,
    window: int = 512,
    available: int | None = None,
) -> None:
    """Raise `TooLargeError` with the arithmetic unless loading, quantizing and running the model fit into the
    memory of the accelerator `device`; `available` defaults to what is free there.

    The model is loaded there in fp32. Where no kernel reads the format, the largest weight is dequantized.
    """
    free = free_bytes(device) if available is None else available
    found = estimate(checkpoint, recipe, tokens=tokens, window=window, available=free)
    weights = sum(parameter.numel() for parameter in meta_model(checkpoint).parameters())
    loaded, largest, work = found.stored_bytes, 0, 0
    if not checkpoint.is_quantized:
        size = _counted(meta_model(checkpoint), recipe)
        loaded, largest = 4 * weights, size.largest
        work = _while_loading(checkpoint, recipe, loaded, 0, size)[1] if recipe.calibrated else largest
    running = found.stored_bytes + largest + found.kv_bytes + found.activation_bytes
    if max(loaded + work, running) <= free:
        return
    refusal = f"{checkpoint.name} does not fit into the memory of {device} as {recipe.name}:"
    if running > free:
        raise TooLargeError(
            f"{refusal} running needs {_gb(running)} there (weights {_gb(found.stored_bytes)}, the largest "
            f"weight dequantized {_gb(largest)}, KV cache for {_tokens(tokens, 1)} {_gb(found.kv_bytes)}, "
            f"activations and logits {_gb(found.activation_bytes)}), and {_gb(free)} are free. Take the "
            "device cpu, a recipe with fewer bits, or a smaller model or window."
        )
    raise TooLargeError(
        f"{refusal} loading {_millions(weights)} weights needs {_gb(loaded + work)} there (as loaded "
        f"{_gb(loaded)}, work space {_gb(work)}), running needs {_gb(running)}, and {_gb(free)} are free. "
        "Quantize it on the device cpu and run the saved folder here, or take a smaller model or window."
    )


def check_fits(checkpoint: Checkpoint, recipe: Recipe, *, tokens: int = 512, window: int = 512) -> Estimate:
    """Return the estimate if the model fits. Raise `TooLargeError` with the arithmetic and what would fit."""
    found = estimate(checkpoint, recipe, tokens=tokens, window=window)
    if not found.fits:
        raise TooLargeError(
            f"{checkpoint.name} does not fit into memory as {recipe.name}: {found.arithmetic}. "
            f"{_advice(checkpoint, found)}"
        )
    return found


def budget() -> int:
    """Return the bytes that may be used. Raise `InputError` if QCORE_MEMORY_LIMIT is not a number of
    bytes."""
    limit = os.environ.get("QCORE_MEMORY_LIMIT")
    if not limit:
        return available_bytes()
    if not limit.isdecimal():
        raise InputError(
            f"QCORE_MEMORY_LIMIT is {limit!r}, but it must be a number of bytes, such as 4000000000."
        )
    return min(int(limit), available_bytes())


def activation_bytes(config, window: int, users: int = 1, scored: bool = False) -> int:
    """Return the fp32 bytes held at once by a pass over `window` tokens: hidden states, MLP activations, and
    logits of every token if they are `scored`, else of the last token per user."""
    inner = (
        getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * config.hidden_size
    )
    if isinstance(inner, list):
        inner = max(inner)
    if experts := getattr(config, "num_experts_per_tok", None):
        inner = max(inner, experts * (getattr(config, "moe_intermediate_size", None) or inner))
    logits = LOGIT_COPIES * window if scored else users
    return 4 * (window * (8 * config.hidden_size + 3 * inner) + logits * config.vocab_size)


def _as_it_is(checkpoint: Checkpoint) -> Stored:
    if checkpoint.foreign is not None:
        from qcore.library.foreign import held_bytes

        total, codes = held_bytes(checkpoint)
        return Stored(total=total, quantized=codes, weights=0, largest=0, packed=codes)
    narrow = sum(
        tensor.nbytes for tensor in checkpoint.tensors.values() if tensor.dtype not in ("F32", "F16", "BF16")
    )
    return Stored(total=checkpoint.nbytes, quantized=narrow, weights=0, largest=0, packed=narrow)


def _fused_bytes(checkpoint: Checkpoint, model: PreTrainedModel) -> int:
    """Return the fp32 bytes of experts that the files store separately and the model fuses into one
    tensor."""
    return sum(
        4 * each.numel()
        for name, each in model.named_parameters()
        if each.ndim == 3 and name not in checkpoint.tensors
    )


def _while_loading(
    checkpoint: Checkpoint, recipe: Recipe, full: int, fused: int, size: Stored
) -> tuple[int, int]:
    """Return (bytes of the loaded model, bytes beside it) at the peak of loading and quantizing."""
    if checkpoint.is_quantized:
        return size.total, 0
    if isinstance(recipe.weights, Float):
        work = (
            0 if recipe.name == "fp32" else size.total
        )  # the fp32 form is freed when all tensors are narrow
    elif isinstance(recipe.weights, Engine):
        work = size.largest
    else:
        work = round(size.largest * METHODS[recipe.method].work)
    own = (
        checkpoint.nbytes if checkpoint.dtypes[0] != "F32" else fused
    )  # freed when the fp32 form is complete
    return full, max(own + round(FUSING * fused), work)


def _while_streaming(checkpoint: Checkpoint, recipe: Recipe, size: Stored) -> int | None:
    method = METHODS.get(recipe.method)
    if checkpoint.is_quantized or method is None or method.streamed is None or recipe.prepare != "none":
        return None
    changed = min(
        size.largest // 4, max(tensor.elements for tensor in checkpoint.tensors.values())
    )  # experts come one by one
    mapped = max(tensor.nbytes for tensor in checkpoint.tensors.values())
    return LIBRARIES + AROUND + STREAM_AROUND + max(mapped, round(2 * changed * method.streamed))


def _held_again(recipe: Recipe, size: Stored) -> int:
    """Return the bytes that running holds beside the stored weights: repacked codes, or the largest weight
    dequantized."""
    if isinstance(recipe.weights, Float):
        return size.largest
    if isinstance(recipe.weights, Engine):
        return size.largest + variant(recipe.weights.backend, recipe.weights.variant).running_bytes
    return size.packed


def _advice(checkpoint: Checkpoint, found: Estimate) -> str:
    if found.peak_load_bytes <= found.available_bytes:
        for name in SMALLER:
            if estimate(checkpoint, parse(name)).fits:
                return f"As {name} it would fit, and so would a smaller window or fewer tokens."
    room = found.available_bytes - found.libraries_bytes
    if room <= 0:
        return "Nothing fits into so little memory; free some first."
    fitting = room / (found.peak_load_bytes - found.libraries_bytes) * checkpoint.parameters
    needed = _gb(found.peak_load_bytes)
    return f"A model of up to about {_millions(fitting)} weights would fit; this one needs {needed} free."


def _tokens(tokens: int, users: int) -> str:
    return f"{tokens} tokens" if users == 1 else f"{users} users of {tokens} tokens"


def _millions(count: float) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e7 else 2}f} million"


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e7 else f"{nbytes / 1e6:.2f} MB"

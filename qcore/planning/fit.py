"""Will it fit? Memory estimated from headers and config alone; nothing is loaded.

    stored    every tensor in the form the recipe gives it; exact for qcore's own formats, estimated for other libraries'
    load      libraries + the fp32 model + a 16-bit checkpoint's own bytes + room to work on the largest weight that changes
    run       libraries + stored + one weight unpacked + KV cache + logits of one window

    KV cache = 2 · layers · KV heads · head size · tokens · 4 bytes        (fp32; fewer tokens in sliding-window layers)

The larger of load and run is compared with the memory at hand: QCORE_MEMORY_LIMIT (bytes) if it is set, else what the machine and
the control group have left. A bf16 checkpoint is loaded in fp32, because that is how it is computed on a CPU.
"""

import os
from dataclasses import dataclass, replace

from qcore.errors import InputError, TooLargeError
from qcore.formats.tensor import format_bytes
from qcore.measurement.memory import available_bytes
from qcore.models import Checkpoint, skeleton
from qcore.recipes import Engine, Float, Recipe, parse

LIBRARIES = 500_000_000  # bytes that torch, transformers and Python hold before any model
WORKING_COPIES = 4  # fp32 copies of the largest changed weight that choosing its codes needs at once
LOGIT_COPIES = 3  # logits, their logarithm of the softmax, and the baseline's
FLOAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Bits per quantized weight of other libraries: codes plus their scales, rounded up
ENGINE_BITS = {
    "bnb-int8": 8.1, "bnb-nf4": 4.5, "bnb-nf4-dq": 4.2, "bnb-fp4": 4.5, "bnb-fp4-dq": 4.2, "torchao-int8": 8.1,
    "torchao-int8-dynamic": 8.1, "torch-dynamic-int8": 8.1, "quanto-int8": 8.1, "quanto-int4": 4.5,
}  # fmt: skip
SMALLER = ("int8", "int4-g64", "int3", "int2")


@dataclass(frozen=True)
class Estimate:
    """All in bytes. `fits` compares the larger peak with `available_bytes`; `arithmetic` is the sum in words."""

    stored_bytes: int
    peak_load_bytes: int
    peak_run_bytes: int
    kv_bytes: int
    available_bytes: int
    fits: bool
    arithmetic: str


def estimate(checkpoint: Checkpoint, recipe: Recipe, *, tokens: int = 512, window: int = 512) -> Estimate:
    """Estimate the memory for `checkpoint` under `recipe`, with a cache of `tokens` and logits of a `window`, both in tokens.

    A model that qcore saved quantized keeps its own recipe. Raises `InputError` for a checkpoint whose shapes contradict its config,
    or a skip pattern that matches nothing.
    """
    model = skeleton(checkpoint)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}  # tied ones once
    if checkpoint.is_quantized:
        stored = full = checkpoint.nbytes
        largest = work = 0
    else:
        full = 4 * sum(sizes.values())
        stored, largest = stored_bytes(model, recipe)
        widened = checkpoint.nbytes if checkpoint.dtypes[0] != "F32" else 0
        work = widened + largest * (WORKING_COPIES if recipe.quantizes else 2)
    kv = kv_cache_bytes(model.config.get_text_config(), tokens)
    logits = LOGIT_COPIES * 4 * window * model.config.get_text_config().vocab_size
    run = stored + kv + logits + largest
    available = budget()
    peak_load, peak_run = LIBRARIES + full + work, LIBRARIES + run
    fits = max(peak_load, peak_run) <= available
    arithmetic = (
        f"loading {_millions(sum(sizes.values()))} weights needs {_gb(peak_load)} "
        f"(as loaded {_gb(full)}, work space {_gb(work)}, libraries {_gb(LIBRARIES)}), "
        f"running needs {_gb(peak_run)} (weights {_gb(stored)}, KV cache for {tokens} tokens {_gb(kv)}, logits {_gb(logits)}, "
        f"libraries {_gb(LIBRARIES)}), and {_gb(available)} are available"
    )
    return Estimate(stored, peak_load, peak_run, kv, available, fits, arithmetic)


def check_fits(checkpoint: Checkpoint, recipe: Recipe, *, tokens: int = 512, window: int = 512) -> Estimate:
    """The estimate, if it fits. Raises `TooLargeError` with the arithmetic and what would fit."""
    found = estimate(checkpoint, recipe, tokens=tokens, window=window)
    if not found.fits:
        raise TooLargeError(
            f"{checkpoint.name} does not fit into memory as {recipe.name}: {found.arithmetic}. {_advice(checkpoint, found)}"
        )
    return found


def budget() -> int:
    """Bytes that may be used. Raises `InputError` if QCORE_MEMORY_LIMIT is set to something that is not a number of bytes."""
    limit = os.environ.get("QCORE_MEMORY_LIMIT")
    if not limit:
        return available_bytes()
    if not limit.isdecimal():
        raise InputError(f"QCORE_MEMORY_LIMIT is {limit!r}, but it must be a number of bytes, such as 4000000000.")
    return min(int(limit), available_bytes())


def stored_bytes(model, recipe: Recipe) -> tuple[int, int]:
    """Bytes of all tensors of `model` (the skeleton is enough) under `recipe`, and the bytes in fp32 of the largest
    weight that it changes."""
    total = {name: parameter.numel() for name, parameter in model.named_parameters()}
    persistent = sum(buffer.nbytes for name, buffer in model.named_buffers() if name in model.state_dict())
    if isinstance(recipe.weights, Float):
        stored = FLOAT_BYTES[recipe.weights.dtype] * sum(total.values()) + persistent
        return stored, 0 if recipe.name == "fp32" else 4 * max(total.values())
    from qcore.select import select

    changed = largest = 0
    left = dict(total)
    targets = select(model, _without_head(recipe)).targets
    for target in targets:
        count = left.pop(target.name, 0)  # absent: tied to one that was counted
        largest = max(largest, 4 * count)
        if count:
            changed += _target_bytes(model, target, count, recipe)
    if recipe.name == "torch-dynamic-int8" and (head := model.get_output_embeddings()) is not None:
        changed += head.weight.numel()  # this library quantizes the head too, a copy of its own if it is tied
        left.pop("lm_head.weight", None)
    if recipe.prepare == "rotation" and model.get_output_embeddings().weight is (embedding := model.get_input_embeddings().weight):
        changed += 4 * embedding.numel()  # the head becomes a matrix of its own
    return changed + 4 * sum(left.values()) + persistent, largest


def kv_cache_bytes(config, tokens: int) -> int:
    """Bytes of keys and values for `tokens` tokens in fp32, from a model's text `config`: grouped queries, sliding windows and
    layers without a cache are taken into account."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    key = value = getattr(config, "head_dim", None) or config.hidden_size // heads
    if getattr(config, "kv_lora_rank", None):  # latent attention, cached expanded
        kv_heads, key, value = heads, config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    sliding = getattr(config, "sliding_window", None) or tokens
    lengths = {"sliding_attention": min(tokens, sliding), "linear_attention": 0, "conv": 0, "mamba": 0}
    return 4 * kv_heads * (key + value) * sum(lengths.get(kind, tokens) for kind in kinds)


def _without_head(recipe: Recipe) -> Recipe:
    return (
        recipe
        if not isinstance(recipe.weights, Engine)
        else replace(recipe, modules=replace(recipe.modules, head="keep", embeddings="keep"))
    )


def _target_bytes(model, target, count: int, recipe: Recipe) -> int:
    if isinstance(target.format, Engine):
        return round(count * ENGINE_BITS.get(recipe.name, 8.1) / 8)
    module = model.get_submodule(target.module)
    shape = getattr(module, target.parameter).shape
    rows, columns = shape[-2:]
    if target.kind == "conv1d" or (target.kind == "experts" and module.is_transposed):
        rows, columns = columns, rows
    return (count // (rows * columns)) * format_bytes(target.format, rows, columns)


def _advice(checkpoint: Checkpoint, found: Estimate) -> str:
    if found.peak_load_bytes <= found.available_bytes:
        for name in SMALLER:
            if estimate(checkpoint, parse(name)).fits:
                return f"As {name} it would fit, and so would a smaller window or fewer tokens."
    room = found.available_bytes - LIBRARIES
    if room <= 0:
        return "Nothing fits into so little memory; free some first."
    fitting = room / (found.peak_load_bytes - LIBRARIES) * checkpoint.parameters
    return f"A model of up to about {_millions(fitting)} weights would fit; this one needs {_gb(found.peak_load_bytes)} free."


def _millions(count: float) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e7 else 2}f} million"


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e7 else f"{nbytes / 1e6:.2f} MB"

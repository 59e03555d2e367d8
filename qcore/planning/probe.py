"""The speed probe: predict the step time of a model on this machine from a shortened copy, before anything is
downloaded or quantized.

    step(copy)  = head + blocks of the copy · time of a block
    step(model) = head + blocks of the model · time of a block

The copy has the model's shapes, classes and formats (see sample.py) and enough blocks to exceed the
processor's caches, so each weight is read from memory as in the full model. The head is timed separately,
after other memory was read. Small models are timed whole. A probe is cached under everything it depends on:
shapes, recipe, processor, threads, version.
"""

from __future__ import annotations

import gc
import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import qcore
from qcore import runtime
from qcore.base.errors import QcoreError, TooLargeError, UnavailableError
from qcore.base.files import read_json, write_json
from qcore.base.home import home
from qcore.base.other_work import OtherWork, is_disturbed
from qcore.base.progress import Progress
from qcore.layers.positions import positions
from qcore.layers.text_part import output_head, text_part
from qcore.measurement import throughput
from qcore.measurement.environment import environment, last_level_cache, read_bandwidth
from qcore.measurement.memory import available_bytes
from qcore.planning import sample
from qcore.planning.stored import tensors
from qcore.recipes import Engine, Float, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLD = 2.5  # the copy's blocks fill at least this multiple of the last-level cache
SHARE = 0.5  # share of the available memory that the copy may take
PROMPT, NEW_TOKENS, REPEATS = 128, 12, 3


@dataclass(frozen=True)
class Probe:
    """Seconds of the head and of one block per decoding step, and of one block per prompt. `depth` of the
    model's `layers` blocks were timed, after a prompt of `prompt_tokens`. `context` is the mean number of
    tokens in the cache while decoding. `bandwidth` is the read bandwidth at the time, bytes per second.
    `others_share` is the share of the processor that other processes took meanwhile. `error` is the reason
    why the recipe could not be timed; the numbers are 0 then."""

    recipe: str
    layers: int
    depth: int = 0
    head_s: float = 0.0
    block_s: float = 0.0
    prefill_block_s: float = 0.0
    prompt_tokens: int = 0
    context: float = 0.0
    threads: int = 0
    bandwidth: float = 0.0
    took_s: float = 0.0
    measured_at: float = 0.0
    native: bool = False
    error: str | None = None
    others_share: float | None = None

    @property
    def disturbed(self) -> bool:
        """Whether the recipe was timed beside other work."""
        return is_disturbed(self.others_share)


def probe(
    model: PreTrainedModel, recipes: Sequence[Recipe], *, progress: Progress | None = None
) -> dict[str, Probe]:
    """Time `recipes` on a shortened copy of `model` (a meta model), one after another, and cache the probes.

    A recipe that cannot be timed gets a `Probe` with its `error`; the others are still timed.
    """
    bandwidth = read_bandwidth()
    found = {}
    for i, recipe in enumerate(recipes):
        if progress is not None:
            progress(i, len(recipes), f"timing {recipe.name}")
        try:
            found[recipe.name] = _time(model, recipe, bandwidth)
        except MemoryError:
            raise
        except Exception as error:  # model classes and libraries may raise anything for such a copy
            first = str(error).strip().partition("\n")[0][:200]
            said = str(error) if isinstance(error, QcoreError) else f"{type(error).__name__}: {first}"
            found[recipe.name] = Probe(
                recipe.name, model.config.get_text_config().num_hidden_layers, error=said
            )
        else:
            write_json(_place(model, recipe), asdict(found[recipe.name]))
    if progress is not None:
        progress(len(recipes), len(recipes), "timed")
    return found


def known(model: PreTrainedModel, recipe: Recipe) -> Probe | None:
    """Return the probe of an earlier call under the same conditions, or None."""
    record = read_json(_place(model, recipe))
    try:
        return None if record is None else Probe(**record)
    except TypeError:  # written by another version
        return None


def depth_for(model: PreTrainedModel, recipe: Recipe) -> int:
    """Return the number of blocks of the copy. Raise `TooLargeError` if not even one fits into its share of
    memory."""
    layers = model.config.get_text_config().num_hidden_layers
    text = text_part(model)
    own = {name: each.numel() for name, each in model.named_parameters() if not text.tower_of(name)}
    blocks = [count for name, count in own.items() if _is_block(name)]
    whole = sum(own.values())
    if not blocks:
        return layers
    block = sum(blocks) / layers
    bits = 8 * sum(each.bytes_after for each in tensors(model, recipe) if each.name in own) / whole
    wanted = -(-COLD * last_level_cache() * 8 // max(block * bits, 1))
    loaded = (
        8 * 4 if isinstance(recipe.weights, Engine | Float) else 8 * 1.5
    )  # upper bound of bits per weight while the copy is made
    room = available_bytes() * SHARE - 4 * (whole - sum(blocks))
    fitting = int(room // max(block * loaded / 8, 1))
    if fitting < 1:
        raise TooLargeError(
            f"Timing {recipe.name} needs {block * loaded / 8 / 1e9:.1f} GB for one block, "
            "more than is free. Leave it out."
        )
    return int(max(1, min(layers, wanted, fitting)))


def _is_block(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _time(model: PreTrainedModel, recipe: Recipe, bandwidth: float) -> Probe:
    began = time.perf_counter()
    if getattr(recipe.weights, "backend", None) == "onnxruntime":
        raise UnavailableError(
            "ONNX Runtime runs a whole graph, and exporting it takes too long for a probe. Runs measure it."
        )
    layers = model.config.get_text_config().num_hidden_layers
    copy = sample.build(sample.shortened(model.config, depth := depth_for(model, recipe)), recipe)
    limit = positions(copy.config) or PROMPT + NEW_TOKENS
    prompt = max(1, min(PROMPT, limit - NEW_TOKENS))
    others = OtherWork()
    speed = throughput.measure(copy, prompt, NEW_TOKENS, repeats=REPEATS)
    step = statistics.median(second for each in speed.samples for second in each.token_s)
    head = min(_head_seconds(copy), step)
    others_share = others.share()
    native = runtime.reason_against(copy) is None
    del copy
    gc.collect()
    return Probe(
        recipe=recipe.name,
        layers=layers,
        depth=depth,
        head_s=head,
        block_s=(step - head) / depth,
        prefill_block_s=max(0.0, speed.ttft_s - head) / depth,
        prompt_tokens=prompt,
        context=prompt + NEW_TOKENS / 2,
        threads=speed.threads,
        bandwidth=bandwidth,
        took_s=time.perf_counter() - began,
        measured_at=time.time(),
        native=native,
        others_share=others_share,
    )


@torch.no_grad()
def _head_seconds(model: PreTrainedModel, repeats: int = 5) -> float:
    """Return the median time of one product with the output head, its weights read from memory."""
    head = output_head(model)
    if head is None:
        return 0.0
    numbers = model.get_input_embeddings()(torch.zeros(1, 1, dtype=torch.long)).dtype  # bfloat16 on some CPUs
    hidden = torch.full((1, 1, model.config.get_text_config().hidden_size), 0.1, dtype=numbers)
    elsewhere = torch.ones(2 * last_level_cache() // 8, dtype=torch.int64)
    head(hidden)
    seconds = []
    for _ in range(repeats):
        elsewhere.sum()
        start = time.perf_counter()
        head(hidden)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _place(model: PreTrainedModel, recipe: Recipe) -> Path:
    about = environment()
    depends = {
        "config": model.config.to_dict(),
        "recipe": recipe.to_dict(),
        "threads": torch.get_num_threads(),
        "cpu": about["cpu"],
        "flags": about["flags"],
        "qcore": qcore.__version__,
        "torch": torch.__version__,
    }
    text = json.dumps(depends, sort_keys=True, default=str)
    return home() / "probes" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

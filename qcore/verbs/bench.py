"""`bench`: speed and memory of one model on this machine."""

from __future__ import annotations

import time

import torch

from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.formats.kv import NONE, kv_format_named
from qcore.measurement.devices import DevicePeak
from qcore.measurement.environment import read_bandwidth
from qcore.measurement.memory import PeakMemory
from qcore.measurement.throughput import measure
from qcore.measurement.traffic import bytes_a_token
from qcore.recipes.spec import check_limits
from qcore.verbs import record
from qcore.verbs.checks import check_model
from qcore.verbs.prepare import load


def run(
    model: str,
    *,
    revision: str | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    repeats: int = 3,
    threads: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    kv: str = NONE,
    progress: Progress,
) -> dict:
    """Return the prefill and decode speed of `model` with a key-value cache in the form `kv`, the share of
    the machine's read bandwidth that decoding uses ("bandwidth_share", None on an accelerator), the peak
    memory of this process, and the record."""
    check_limits(
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, threads=threads, seed=seed
    )
    form = kv_format_named(kv)
    checkpoint = check_model(model, revision, device=device, kv=form, progress=progress)
    if threads:
        torch.set_num_threads(threads)
    length = prompt_tokens + new_tokens
    with heavy_turn(progress):
        began = time.time()
        with PeakMemory() as loading, DevicePeak(device) as loading_there:
            loaded = load(checkpoint, device=device, tokens=length, window=length, progress=progress)
        with PeakMemory() as running, DevicePeak(device) as running_there:
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
        ledger = record.ledger_of(loaded)
        read = bytes_a_token(loaded.model, ledger.rows)
        bandwidth = (
            read_bandwidth() if device == "cpu" else None
        )  # last, so that no figure includes its buffer
    words = record.options(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        threads=threads,
        seed=seed,
        revision=revision,
        device=device,
        kv=kv,
    )
    about = record.describe(loaded, threads=threads) | record.times(began, ["bench", model, *words])
    about |= {"samples": result.pop("samples"), "device": device, "seed": seed}
    about |= {
        "recipe": record.recipe_of(loaded),
        "bytes_a_token": read,
        "kv": record.kv_record(form, speed),
        "execution": record.execution(loaded.model, form),
        "device_memory": {"loading": loading_there.peak_bytes, "running": running_there.peak_bytes},
    }
    about["environment"]["read_bandwidth"] = bandwidth
    share = result["decode_tok_s"] * read / bandwidth if bandwidth else None
    return {
        "model": model,
        **result,
        "bandwidth_share": share,
        "stored_bytes": ledger.stored_bytes,
        "peak_load_bytes": loading.peak_bytes,
        "peak_run_bytes": running.peak_bytes,
        "record": about,
    }

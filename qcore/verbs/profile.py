"""`profile`: the time of one model's steps, as a trace file and as a table of phases.

    linears      every linear layer but the head, called in isolation with its input from a step
    attention    over the cache: a step with the prompt in the cache, minus a step with an almost empty cache
    head         the output head, called in isolation
    rest         the whole step, minus the three above: norms, rotary embedding, activation functions, calls

The whole step is measured as in `bench`. A native step is one call without timers inside, so its phases are
measured separately: a layer called in isolation pays for a Python call that the native step saves, and `rest`
can be negative for models with small layers.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

from qcore.base.errors import InputError
from qcore.base.other_work import OtherWork, is_disturbed
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.layers.text_part import output_head
from qcore.measurement.throughput import measure
from qcore.recipes import Recipe
from qcore.recipes.spec import check_limits
from qcore.runtime import Context
from qcore.runtime.calls import device_of
from qcore.verbs import record
from qcore.verbs.checks import check_model
from qcore.verbs.prepare import PACKAGED, CalibrationText, prepare

TRACED = 4  # decoding steps in the trace file
SHORT = 2  # tokens in an almost empty cache
ROUNDS = 6  # calls of the layers per repeat; the first is a warm-up
Inputs = list[tuple[nn.Module, tuple[torch.Tensor, ...]]]


def run(
    model: str,
    recipe: Recipe | None,
    trace: Path,
    *,
    revision: str | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "cpu",
    calibration: CalibrationText = PACKAGED,
    progress: Progress,
) -> dict:
    """Profile `model` under `recipe` (None: unchanged): write a trace of one prefill and a few decoding steps
    to the file `trace` (JSON for chrome://tracing or ui.perfetto.dev), and return the seconds of the phases
    of one step, with the record.

    Raise `InputError` for unusable input, before the model is loaded where possible.
    """
    check_limits(prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, threads=threads)
    trace = Path(trace)
    if trace.is_dir() or not trace.absolute().parent.is_dir():
        raise InputError(f"The trace cannot be written to {trace}. Name a file in a folder that exists.")
    as_stored = recipe is None  # a recipe starts from values
    checkpoint = check_model(model, revision, device=device, as_stored=as_stored, progress=progress)
    calibration.check(recipe)
    if threads:
        torch.set_num_threads(threads)
    length = prompt_tokens + new_tokens
    with heavy_turn(progress):
        began = time.time()
        made = prepare(
            checkpoint,
            recipe,
            device=device,
            tokens=length,
            window=length,
            calibration=calibration,
            progress=progress,
        )
        whole = made.loaded.model
        head, calls = output_head(whole), _linear_calls(whole)
        layers = [call for call in calls if call[0] is not head]
        outputs = [call for call in calls if call[0] is head]
        rounds: list[dict[str, float]] = []
        others = OtherWork()
        for number in range(repeats):  # alternating, so that other load on the machine affects all phases
            progress(number, repeats + 1, f"measuring, repeat {number + 1} of {repeats}")
            speed = measure(whole, prompt_tokens, new_tokens, repeats=1)
            rounds.append(
                {
                    "prefill_s": speed.ttft_s,
                    "step_s": _step(speed),
                    "short_step_s": _step(measure(whole, SHORT, new_tokens, repeats=1)),
                    "linears_s": _seconds(layers),
                    "head_s": _seconds(outputs),
                }
            )
        found = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        found["attention_s"] = found["step_s"] - found["short_step_s"]
        found["others_share"] = others.share()
        parts = ("linears_s", "attention_s", "head_s")
        found["rest_s"] = found["step_s"] - sum(found[name] for name in parts)
        progress(repeats, repeats + 1, "tracing")
        _trace(whole, prompt_tokens, trace)
    words = record.options(
        recipe=recipe and recipe.name,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        threads=threads,
        revision=revision,
        device=device,
    )
    about = record.describe(made.loaded, threads=threads) | record.times(began, ["profile", model, *words])
    about |= {"device": device, "recipe": made.recipe.to_dict(), "execution": record.execution(whole)}
    counts = {"linear_layers": len(layers), "context": prompt_tokens + new_tokens / 2}
    place = str(trace.absolute())
    counts["disturbed"] = is_disturbed(found["others_share"])
    return {"model": model, "recipe": made.recipe.name, **found, **counts, "trace": place, "record": about}


def _step(speed) -> float:
    """Return the median seconds of one decoding step."""
    return statistics.median(second for sample in speed.samples for second in sample.token_s)


@torch.no_grad()
def _linear_calls(model: nn.Module) -> Inputs:
    """Return the linear modules of `model` in the order in which a decoding step calls them, each with its
    input. Forward hooks record the inputs; with hooks the modules run one by one."""
    calls: Inputs = []

    def keep(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        calls.append((module, arguments))

    linear = [each for each in model.modules() if hasattr(each, "in_features")]
    # skip containers of other libraries' layers: their inner module counts already
    leaves = [each for each in linear if not any(hasattr(inner, "in_features") for inner in each.children())]
    hooks = [each.register_forward_pre_hook(keep) for each in leaves]
    try:
        ids = torch.zeros(1, SHORT, dtype=torch.long, device=device_of(model))
        context = Context(model)
        context.append(ids)
        calls.clear()
        context.append(ids[:, :1])
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@torch.no_grad()
def _seconds(calls: Inputs) -> float:
    """Return the median seconds of all `calls` in sequence: in this order the processor caches hold no
    weights that they would not hold in a step."""
    seconds = []
    for _ in range(ROUNDS if calls else 0):
        began = time.perf_counter()
        for module, arguments in calls:
            module(*arguments)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) if seconds else 0.0


@torch.no_grad()
def _trace(model: nn.Module, prompt_tokens: int, path: Path) -> None:
    """Write a trace of a prefill and `TRACED` decoding steps to `path`."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    ids = torch.zeros(1, prompt_tokens, dtype=torch.long, device=device_of(model))
    context = Context(model)
    with torch.profiler.profile(activities=activities) as profiler:
        with record_function("qcore: prefill"):
            context.append(ids)
        for number in range(TRACED):
            with record_function(f"qcore: decoding step {number + 1}"):
                context.append(ids[:, :1])
    profiler.export_chrome_trace(str(path))

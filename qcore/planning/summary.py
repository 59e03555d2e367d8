"""The plan: bytes, peaks, speed and quality of every recipe before anything is downloaded. Each figure names
its source.

measured     taken from a run of this model, or counted from its shapes where that is exact
probed       timed on a shortened copy of the model on this machine; marked if beside other work
estimated    a formula or a typical figure
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qcore import library
from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.formats.kv import KV_FORMATS, NONE, check_config
from qcore.layers.positions import positions
from qcore.measurement.devices import free_bytes
from qcore.models import Checkpoint, meta_model
from qcore.planning import cache, fit, quality, speed
from qcore.planning.machines import RUNTIME, Target, machines, target
from qcore.planning.recommend import Candidate, Needs, recommend
from qcore.planning.types import AS_IT_IS, CONTEXT, DISTURBED, LARGEST_CONTEXT, PROBED, RECIPES, Plan, PlanRow
from qcore.recipes import Recipe, parse, parse_all

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_USERS = 1_000_000


def plan(
    model: str | Path | Checkpoint,
    recipes: Sequence[Recipe | str] | None = None,
    *,
    context: int | None = None,
    users: int = 1,
    memory: str | int | None = None,
    device: str = "cpu",
    kv: Sequence[str] | None = None,
    probe: bool = False,
    min_tokens_per_second: float | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    revision: str | None = None,
    runs: Iterable[dict] = (),
    progress: Progress | None = None,
) -> Plan:
    """Plan `model` (a name, or a `Checkpoint` from `models.outline`) under `recipes` (None: a selection) from
    its headers.

    `context` tokens of KV cache for each of `users` (None: 2048, or as many positions as the model has), in
    each of the formats `kv`, the preferred one first (None: all that the architecture allows, the most exact
    first). `memory` is what it must run in, such as "16GB" or a known accelerator's name (None: what is free
    on `device`). With `probe`, recipes are timed on a shortened copy for some seconds each; without, earlier
    probes count. `runs` are finished rows of earlier runs, newest first, for measured quality.

    Raise `InputError` for a model, recipe or number that cannot be used, `UnavailableError` if the hub
    cannot be reached.
    """
    checkpoint = (
        model if isinstance(model, Checkpoint) else library.outline(model, revision, progress=progress)
    )
    chosen = _recipes(checkpoint, RECIPES if recipes is None else recipes)
    meta = meta_model(checkpoint)
    config = meta.config.get_text_config()
    context = _context(config, context)
    if isinstance(users, bool) or not isinstance(users, int) or not 1 <= users <= MOST_USERS:
        raise InputError(f"users is {users!r}, but it must be a whole number from 1 to {MOST_USERS:,}.")
    formats = [cache.format_named(name) for name in (cache.formats_for(config) if kv is None else kv)]
    if any(format.form is not None for format in formats):
        check_config(config)
    goal = _free(device) if memory is None else target(memory)
    needs = Needs(goal.bytes, min_tokens_per_second, max_kl, max_perplexity_ratio)
    runs = list(runs)
    if probe and device != "cpu":
        raise InputError("A probe times the processor. Leave out the probe, or plan for the device cpu.")
    untimed = checkpoint.is_quantized or device != "cpu"
    timed = {} if untimed else _probes(meta, chosen, probe, progress)
    found_quality = quality.from_runs(checkpoint, runs)
    rows = []
    for recipe in chosen:
        for format in formats:
            estimate = fit.estimate(
                checkpoint,
                recipe,
                tokens=context,
                window=min(context, 512),
                users=users,
                kv=format,
                scored=False,
                available=goal.bytes,
            )
            rows.append(
                _row(
                    checkpoint, recipe, format, estimate, timed.get(recipe.name), found_quality, context, goal
                )
            )
    order = {format.name: i for i, format in enumerate(formats)}
    candidates = [
        Candidate(
            row.recipe, row.kv, row.run_bytes, row.decode_tok_s, row.kl, row.perplexity_ratio, order[row.kv]
        )
        for row in rows
    ]
    slower = speed.smaller_but_slower([row for row in rows if row.kv == formats[0].name])
    return Plan(
        model=checkpoint.name,
        description=checkpoint.description,
        parameters=checkpoint.parameters,
        checkpoint_bytes=checkpoint.nbytes,
        dtypes=checkpoint.dtypes,
        cache_layout=cache.describe(cache.layout(meta)),
        context=context,
        users=users,
        memory=goal.bytes,
        memory_is=goal.is_,
        rows=tuple(rows),
        machines=_fitting(rows),
        warnings=tuple(slower),
        recommendation=recommend(candidates, needs),
        probed=_about([each for each in timed.values() if each is not None and not each.error]),
    )


def _free(device: str) -> Target:
    if device == "cpu":
        return Target(fit.budget(), "free on this machine")
    return Target(
        free_bytes(device) + RUNTIME, f"free on {device}", card=True
    )  # torch's part is taken already


def _recipes(checkpoint: Checkpoint, recipes: Sequence[Recipe | str]) -> list[Recipe]:
    if checkpoint.is_quantized:
        return [parse("fp32")]  # a placeholder: the model keeps its own recipe
    return list({recipe.name: recipe for recipe in parse_all(recipes)}.values())


def _context(config, context: int | None) -> int:
    limit = positions(config)
    if context is None:
        return min(CONTEXT, limit or CONTEXT)
    if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= LARGEST_CONTEXT:
        raise InputError(
            f"context is {context!r}, but it must be a whole number of tokens from 1 to {LARGEST_CONTEXT:,}."
        )
    if limit and context > limit:
        raise InputError(f"context is {context:,} tokens, but this model has only {limit:,} positions.")
    return context


def _probes(model: PreTrainedModel, recipes: list[Recipe], probe: bool, progress: Progress | None) -> dict:
    from qcore.planning import probe as probing

    if probe:
        return probing.probe(model, recipes, progress=progress)
    return {recipe.name: probing.known(model, recipe) for recipe in recipes}


def _row(
    checkpoint, recipe: Recipe, format, estimate, timed, measured: dict, context: int, goal: Target
) -> PlanRow:
    notes, kv = [], NONE if format.form is None else format.name
    sources = {
        "stored": "estimated" if hasattr(recipe.weights, "backend") else "counted",
        "peak": "estimated",
    }
    figures = {}
    if timed is not None and timed.error:
        notes.append(f"It could not be timed: {timed.error}")
    elif (
        timed is not None and kv == NONE
    ):  # the native step does not read quantized caches, so a probe does not apply
        found = speed.predict(timed, meta_model(checkpoint), recipe, context)
        figures = {
            "decode_tok_s": found.decode_tok_s,
            "prefill_tok_s": found.prefill_tok_s,
            "limit_tok_s": found.limit_tok_s,
        }
        sources |= dict.fromkeys(("decode", "prefill"), DISTURBED if timed.disturbed else PROBED)
    name = AS_IT_IS if checkpoint.is_quantized else recipe.name
    known = None if checkpoint.is_quantized else _quality(recipe.name, kv, measured)
    if known is not None:
        figures |= {"kl": known.kl, "perplexity_ratio": known.ratio}
        sources["quality"] = known.source
        notes.append(f"Quality {known.source}: {known.about}.")
    if estimate.peak_load_bytes > (available := fit.budget()):
        stream = estimate.peak_stream_bytes
        how = (
            "quantize it streamed"
            if stream is not None and stream <= available
            else "it must be quantized on a larger machine"
        )
        notes.append(f"Quantizing it in memory needs {estimate.peak_load_bytes / 1e9:.2f} GB; {how}.")
    weights, kept, passing = estimate.stored_bytes, estimate.kv_bytes, estimate.activation_bytes
    card = RUNTIME + weights + kept + passing
    parts = {
        "libraries": RUNTIME if goal.card else estimate.libraries_bytes,
        "weights": weights,
        "KV cache": kept,
        "activations": passing,
    }
    running = card if goal.card else estimate.peak_run_bytes
    parts["work space"] = running - sum(parts.values())
    return PlanRow(
        recipe=name,
        kv=format.name,
        stored_bytes=weights,
        bits_per_weight=estimate.bits_per_weight,
        kv_bytes=kept,
        run_bytes=running,
        load_bytes=estimate.peak_load_bytes,
        stream_bytes=estimate.peak_stream_bytes,
        card_bytes=card,
        parts=parts,
        fits=running <= goal.bytes,
        sources=sources,
        notes=tuple(notes),
        **figures,
    )


def _quality(recipe: str, kv: str, measured: dict):
    """Return the quality measured with this cache, else the recipe's (measured or typical) plus the typical
    loss of the cache."""
    if (recipe, kv) in measured:
        return measured[recipe, kv]
    return quality.with_cache(measured.get((recipe, NONE)) or quality.typical(recipe), kv)


def _fitting(rows: list[PlanRow]) -> tuple[dict, ...]:
    """Return {"name", "bytes", "fits": recipes, largest first} for each known accelerator."""
    offered = [
        row for row in rows if row.kv not in KV_FORMATS
    ] or rows  # other runtimes keep their cache unquantized by default
    found = []
    for machine in machines():
        fitting = [row for row in offered if row.card_bytes <= machine.bytes]
        names = dict.fromkeys(row.recipe for row in sorted(fitting, key=lambda row: -row.stored_bytes))
        found.append({"name": machine.name, "bytes": machine.bytes, "fits": list(names)})
    return tuple(found)


def _about(probes: list) -> dict | None:
    if not probes:
        return None
    newest = max(probes, key=lambda each: each.measured_at)
    return {
        "threads": newest.threads,
        "bandwidth": newest.bandwidth,
        "prompt_tokens": newest.prompt_tokens,
        "measured_at": newest.measured_at,
        "recipes": {each.recipe: asdict(each) for each in probes},
        "disturbed": [each.recipe for each in probes if each.disturbed],
    }

"""Predictions made for a run and their errors: the error band of the plan.

Every run stores its prediction beside its measured figures. The functions of the plan make it, without the
measurements.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qcore.base.errors import QcoreError
from qcore.base.other_work import is_disturbed, share_of
from qcore.formats.kv import NONE
from qcore.measurement.memory import available_bytes
from qcore.models import Checkpoint, meta_model
from qcore.planning import cache, fit, probe, speed
from qcore.planning.types import Band
from qcore.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIGURES = {"stored_bytes": 0.01, "peak_load_bytes": 0.10, "peak_run_bytes": 0.10, "decode_tok_s": 0.20}
"""Predicted figures and the relative error allowed for each."""
SPEEDS = ("decode_tok_s",)
# times the fp32 bytes of a shortened copy that must be free before one is timed beside a loaded model
ROOM = 3.0


def predict(
    checkpoint: Checkpoint,
    recipe: Recipe,
    prompt_tokens: int,
    new_tokens: int,
    *,
    timed: bool,
    kv: str = NONE,
) -> dict:
    """Return the predicted figures of a run with a cache in the form `kv`, JSON-ready. With `timed`, probe
    the recipe if there is no probe yet and memory allows. Without a probe, speeds are None and "decode_is"
    gives the reason."""
    format = cache.FORMATS["fp32" if kv == NONE else kv]
    found = fit.estimate(
        checkpoint, recipe, tokens=prompt_tokens + new_tokens, window=prompt_tokens, scored=False, kv=format
    )
    figures = {name: getattr(found, name) for name in ("stored_bytes", "peak_load_bytes", "peak_run_bytes")}
    if kv != NONE or checkpoint.is_quantized:
        what = "with a quantized cache" if kv != NONE else "of a model that is quantized already"
        return figures | {"decode_tok_s": None, "prefill_tok_s": None, "decode_is": f"no probe {what}"}
    model = meta_model(checkpoint)
    known, reason = probe.known(model, recipe), "no probe"
    if (known is None or known.disturbed) and timed:
        known, reason = _probe(model, recipe)
    if known is None:
        return figures | {"decode_tok_s": None, "prefill_tok_s": None, "decode_is": reason}
    there = speed.predict(known, model, recipe, prompt_tokens + new_tokens // 2, prompt_tokens)
    about = {"decode_is": "probed", "depth": known.depth, "layers": known.layers, "probe_s": known.took_s}
    about["disturbed"] = known.disturbed
    return figures | {"decode_tok_s": there.decode_tok_s, "prefill_tok_s": there.prefill_tok_s, **about}


def bands(rows: Iterable[dict]) -> list[Band]:
    """Return the error band of each figure over the finished `rows` that carry a prediction; figures without
    one are left out."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        for figure, error in of_row(row).items():
            errors.setdefault(figure, []).append(error)
    return [
        Band(
            figure,
            len(found),
            statistics.median(map(abs, found)),
            max(found, key=abs),
            sum(abs(error) <= bar for error in found),
            bar,
        )
        for figure, bar in FIGURES.items()
        if (found := errors.get(figure))
    ]


def of_row(row: dict) -> dict[str, float]:
    """Return {figure: predicted / measured − 1} of one row; empty for a row of an accelerator, because the
    predictions are those of the CPU. A speed that was measured or probed beside other work is left out."""
    record = row.get("record") or {}
    predicted = (record.get("predicted") or {}) if record.get("device", "cpu") == "cpu" else {}
    disturbed = predicted.get("disturbed") or is_disturbed(share_of(record))
    figures = [figure for figure in FIGURES if not (disturbed and figure in SPEEDS)]
    pairs = ((figure, predicted.get(figure), row.get(figure)) for figure in figures)
    return {figure: expected / found - 1 for figure, expected, found in pairs if expected and found}


def _probe(model: PreTrainedModel, recipe: Recipe) -> tuple[probe.Probe | None, str]:
    try:
        depth = probe.depth_for(model, recipe)
    except QcoreError as error:
        return None, str(error)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    if ROOM * whole * depth / model.config.get_text_config().num_hidden_layers > available_bytes():
        return None, "too little free memory to time a copy beside the model"
    found = probe.probe(model, [recipe])[recipe.name]
    return (None, found.error) if found.error else (found, "probed")

"""Quality loss of a recipe: measured if it was run on this model, else a typical figure with its source.

The typical figures were measured by qcore itself on one small model (typical.json holds the conditions).
Larger models lose less, so the figures are conservative. A recipe that was not measured has none.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from qcore.base.files import asset
from qcore.formats.kv import NONE
from qcore.models import Checkpoint

MEASURED, ESTIMATED = "measured", "estimated"


@dataclass(frozen=True)
class Quality:
    """Loss against the baseline: `kl` in nats per token, `ratio` of the perplexities (None without a
    baseline). `source` is "measured" or "estimated"; `about` names the model and text."""

    kl: float | None
    ratio: float | None
    source: str
    about: str


def from_runs(checkpoint: Checkpoint, rows: Iterable[dict]) -> dict[tuple[str, str], Quality]:
    """Return the quality by (recipe, format of the key-value cache) from finished `rows` (newest first) of
    the same weights. The format is "none" if the cache was not quantized."""
    own = [row for row in rows if row.get("status") == "ok" and is_of(checkpoint, row.get("record") or {})]
    bases = {
        _conditions(row): row["perplexity"]
        for row in own
        if _key(row) == ("fp32", NONE) and row.get("perplexity")
    }
    found: dict[tuple[str, str], Quality] = {}
    for row in own:
        if _key(row) in found or row.get("kl_mean") is None:
            continue
        base, text = bases.get(_conditions(row)), row["record"].get("text") or {}
        ratio = row["perplexity"] / base if base and row.get("perplexity") else None
        scored = row["record"].get("tokens_scored")
        found[_key(row)] = Quality(
            row["kl_mean"],
            ratio,
            MEASURED,
            f"your run on {text.get('name', 'a text')}, {scored:,} tokens" if scored else "your run",
        )
    return found


def with_cache(weights: Quality | None, cache: str) -> Quality | None:
    """Return the estimated quality of quantized `weights` with a quantized key-value `cache`: the sum of both
    losses."""
    if weights is None or cache == NONE:
        return weights
    entry = _typical()["caches"][cache]
    kl = None if weights.kl is None else weights.kl + entry["kl"]
    ratio = None if weights.ratio is None else weights.ratio * entry["ratio"]
    return Quality(kl, ratio, ESTIMATED, f"{weights.about}; the cache: {_typical()['caches']['about']}")


def is_of(checkpoint: Checkpoint, record: dict) -> bool:
    """Return whether a run's record is of the weights of `checkpoint`, by digest, or by hub name and
    commit."""
    if record.get("digest") == checkpoint.digest:
        return True
    return (
        checkpoint.source == "hub"
        and record.get("model") == checkpoint.name
        and record.get("revision") == checkpoint.revision
    )


def typical(recipe: str) -> Quality | None:
    """Return the typical figure of `recipe`, None if it was not measured."""
    if recipe == "fp32":
        return Quality(0.0, 1.0, MEASURED, "the baseline itself")
    table = _typical()
    entry = table["recipes"].get(recipe)
    return (
        None
        if entry is None
        else Quality(entry["kl"], entry["perplexity"] / table["perplexity"], ESTIMATED, table["about"])
    )


def _key(row: dict) -> tuple[str, str]:
    return row["recipe"], (row["record"].get("kv") or {}).get("name", NONE)


def _conditions(row: dict) -> tuple:
    record = row["record"]
    return (
        (record.get("text") or {}).get("sha256"),
        record.get("window"),
        record.get("stride"),
        record.get("tokens_scored"),
    )


@cache
def _typical() -> dict:
    table = json.loads(asset("typical.json").read_text(encoding="utf-8"))
    for name, entry in table["recipes"].items():
        if not all(math.isfinite(value) for value in entry.values()):
            raise ValueError(f"typical.json has no finite figures for {name}")
    return table

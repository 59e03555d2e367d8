"""Rows for the compare page: joined from several runs, labeled, with the best recipes and the conditions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qcore.formats.kv import NONE
from qcore.results.verdicts import kv_of
from ui import jobs, state
from ui.text import clock, digits, percent, size

CONDITIONS = {
    "model": "model",
    "revision": "revision",
    "text": "text",
    "window": "window",
    "stride": "stride",
    "threads": "threads",
    "compute_dtype": "computed in",
    "device": "device",
}


@dataclass(frozen=True)
class Best:
    """The best recipe by one figure: `title`, `recipe`, `value` with its unit, `against` the baseline."""

    title: str
    recipe: str
    value: str
    against: str


def joined(runs: Sequence[jobs.JobStatus]) -> list[dict]:
    """Return the rows of all `runs`, each with a unique "label": the recipe, and the conditions that separate
    it from others of the same name."""
    pairs = [(status, row) for status in runs for row in state.rows(status)]
    count = Counter(row["recipe"] for _, row in pairs)
    models = {state.model_of(status) for status in runs}
    rows, seen = [], Counter()
    for status, row in pairs:
        label = row["recipe"] + _choices(row)
        if count[row["recipe"]] > 1 and len(runs) > 1:
            label += f" · {state.model_of(status)}" if len(models) > 1 else f" · {clock(status.created_at)}"
        seen[label] += 1
        rows.append(
            {
                **row,
                "label": label if seen[label] == 1 else f"{label} ({seen[label]})",
                "run_id": status.run_id,
            }
        )
    return rows


def measured(rows: Sequence[dict]) -> list[dict]:
    """Return the rows that succeeded."""
    return [row for row in rows if row["status"] == "ok"]


def best(rows: Sequence[dict]) -> list[Best]:
    """Return the smallest, the fastest and the most accurate recipe, each against fp32 if it was measured."""
    base = next((row for row in rows if row["recipe"] == "fp32"), None)
    others = [row for row in rows if row is not base]
    found = []
    if not others:
        return found
    small = min(
        (row for row in others if row["stored_bytes"]), key=lambda row: row["stored_bytes"], default=None
    )
    if small:
        found.append(
            Best(
                "Smallest",
                small["label"],
                size(small["stored_bytes"]),
                base and _times(base["stored_bytes"], small["stored_bytes"], "smaller"),
            )
        )
    fast = max(
        (row for row in others if row["decode_tok_s"]), key=lambda row: row["decode_tok_s"], default=None
    )
    if fast:
        text = f"{digits(fast['decode_tok_s'])} tok/s"
        found.append(
            Best(
                "Fastest decode",
                fast["label"],
                text,
                base and _times(fast["decode_tok_s"], base["decode_tok_s"], "as fast"),
            )
        )
    near = min(
        (row for row in others if row["kl_mean"] is not None), key=lambda row: row["kl_mean"], default=None
    )
    if near:
        text = f"{percent(near['top1_agreement'])} same top token"
        found.append(Best("Closest to fp32", near["label"], f"KL {digits(near['kl_mean'])} nats", text))
    return found


def shared_conditions(rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    """Return (the conditions of the measurements as short phrases, the names of the conditions in which rows
    differ)."""
    records = [row["record"] for row in rows]
    phrases, differing = [], []
    for key, name in CONDITIONS.items():
        values = {_value(record, key) for record in records}
        if len(values) > 1:
            differing.append(name)
    if not records:
        return phrases, differing
    first = records[0]
    speed = first.get("spec") or {}
    phrases = [
        f"text: {_value(first, 'text')}",
        f"{_tokens(first)} tokens scored in windows of {first.get('window')}, stride {first.get('stride')}",
        f"speed: prompt of {speed.get('prompt_tokens')} tokens, {speed.get('new_tokens')} new tokens, "
        f"median of {speed.get('repeats')}",
        f"{first.get('threads')} threads, computed in {first.get('compute_dtype')}, {first.get('device')}",
        str((first.get("environment") or {}).get("cpu", "")),
    ]
    return [phrase for phrase in phrases if phrase], differing


def _tokens(record: dict) -> str:
    scored = (record.get("evaluation") or {}).get("tokens_scored")
    return f"{scored:,}" if scored else "?"


def _value(record: dict, key: str) -> str:
    value = record.get(key)
    return value.get("name", "") if isinstance(value, dict) else str(value)


def _choices(row: dict) -> str:
    """Return the settings that the name omits: skipped modules, another head format, a quantized cache."""
    modules = ((row.get("record") or {}).get("recipe") or {}).get("modules") or {}
    skip = modules.get("skip") or []
    head = modules.get("head", "keep")
    plain = head == "keep" or "head8" in row["recipe"]
    kv = kv_of(row)
    cache = "" if kv == NONE else f", KV {kv}"
    return (f" without {', '.join(skip)}" if skip else "") + ("" if plain else f", head {head}") + cache


def _times(more: float, less: float, word: str) -> str:
    return f"{digits(more / less)}× {word} " + ("than fp32" if word.endswith("er") else "as fp32")

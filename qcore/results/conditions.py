"""The conditions of a run in words, for the page Compare and for reports."""

from collections.abc import Mapping
from typing import Any

from qcore.results.report import human_bytes, human_number, human_percent
from qcore.results.rows import RunRecord

_SHOWN = 16  # hexadecimal digits of a SHA-256


def settings(record: RunRecord) -> dict[str, str]:
    """Return what was measured and how, by name; conditions that the record lacks are left out."""
    spec, text = record.get("spec") or {}, record.get("text")
    speed = [spec.get(name) for name in ("prompt_tokens", "new_tokens", "repeats")]
    kv = (record.get("kv") or {}).get("name")
    return _known(
        {
            "model": record.get("model"),
            "weights": record.get("model_description"),
            "revision": record.get("revision"),
            "digest": (record.get("digest") or "")[:_SHOWN],
            "text": text and f"{text['name']}, SHA-256 {text['sha256'][:_SHOWN]}…",
            "tokens scored": f"{record['tokens_scored']:,}" if record.get("tokens_scored") else None,
            "window and stride": f"{record.get('window')} and {record.get('stride')} tokens"
            if record.get("window")
            else None,
            "speed": f"prompt of {speed[0]} tokens, {speed[1]} new tokens, median of {speed[2]}"
            if all(speed)
            else None,
            "key-value cache": kv if kv != "none" else None,
            "margin": human_percent(spec["margin"]) if spec.get("margin") else None,
            "seed": record.get("seed"),
            "threads": record.get("threads"),
            "computed in": record.get("compute_dtype"),
            "device": record.get("device"),
        }
    )


def machine(record: RunRecord) -> dict[str, str]:
    """Return the machine and the software of a run, by name."""
    found = record.get("environment") or {}
    bandwidth, total = found.get("read_bandwidth"), found.get("memory_total")
    processor = ", ".join(
        [
            *[str(found["cpu"])] * bool(found.get("cpu")),
            *[f"{found['cores']} cores"] * bool(found.get("cores")),
            *[f"a quota of {human_number(found.get('cpu_quota'))} of them"] * bool(found.get("cpu_quota")),
        ]
    )
    return _known(
        {
            "processor": " ".join([processor, *(found.get("flags") or [])]).strip(),
            "read bandwidth": bandwidth and f"{bandwidth / 1e9:.1f} GB/s",
            "memory": total
            and f"{human_bytes(total)} in total, {human_bytes(found.get('memory_available'))} available at "
            "the start",
            "GPU": found.get("gpu"),
            "system": found.get("os"),
            "Python": found.get("python"),
            "qcore": record.get("qcore"),
            "commit": found.get("commit"),
            "libraries": ", ".join(
                f"{name} {version}" for name, version in (found.get("libraries") or {}).items()
            ),
        }
    )


def _known(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value not in (None, "")}

"""Rows and runs with invented figures, for tests of charts and pages only."""

import math
import time
from pathlib import Path

from qcore import recipes
from qcore.base.errors import InputError
from qcore.base.files import write_json

# recipe: stored MB, bits/weight, perplexity, KL, agreement, decode tok/s, prefill tok/s
FIGURES = {
    "fp32": (538.1, 32.0, 14.703, 0.0, 1.0, 13.1, 305),
    "int8": (220.1, 8.03, 14.72, 0.0021, 0.975, 14.9, 290),
    "int8-dynamic": (220.1, 8.03, 14.81, 0.0083, 0.951, 11.2, 180),
    "int4-g32": (176.0, 4.63, 17.9, 0.171, 0.801, 12.2, 270),
    "int4-g64": (170.5, 4.31, 18.7, 0.213, 0.774, 12.4, 268),
    "nf4-g64": (170.0, 4.25, 17.4, 0.157, 0.811, 11.8, 255),
    "kmeans4": (171.3, 4.4, 17.1, 0.149, 0.815, 11.9, 257),
    "int2": (142.0, 2.3, 51234.5, 9.81, 0.013, 12.3, 266),
    "bnb-int8": (219.6, 8.02, 14.92, 0.0121, 0.944, 8.2, 303),
    "bnb-nf4": (172.9, 4.5, 18.71, 0.231, 0.767, 10.6, 438),
    "torchao-int8": (219.9, 8.03, 14.75, 0.0024, 0.973, 18.6, 402),
    "torch-dynamic-int8": (135.2, 8.0, 46.97, 1.13, 0.561, 32.0, 614),
    "quanto-int8": (219.9, 8.03, 14.73, 0.0023, 0.974, 8.3, 379),
}
STRANGE = "<b>&amp; *bold* $x$ [link](http://example.com) ![](x.png) :smile: \u202eright\u0000"


def row(
    name: str,
    *,
    status: str = "ok",
    error: str | None = None,
    model: str = "smollm2-135m",
    run_id: str = "",
    **changes,
) -> dict:
    """Return a row as a run stores it; a failed row has no figures."""
    recipe = _recipe(name)
    record = {
        "model": model,
        "recipe": recipe,
        "run_id": run_id,
        "spec": spec(model, [name]),
        "started_at": time.time() - 60,
    }
    empty = dict.fromkeys(
        (
            "stored_bytes",
            "bits_per_weight",
            "coverage",
            "perplexity",
            "kl_mean",
            "top1_agreement",
            "prefill_tok_s",
            "decode_tok_s",
            "ttft_s",
            "peak_load_bytes",
            "peak_run_bytes",
            "quantize_s",
        )
    )
    base = {"recipe": name, "status": status, "error": error, **empty, "record": record}
    if status != "ok":
        return base | changes
    megabytes, bits, perplexity, kl, agreement, decode, prefill = FIGURES[name]
    figures = {
        "stored_bytes": int(megabytes * 1e6),
        "bits_per_weight": bits,
        "coverage": 0.79 * (name != "fp32"),
        "perplexity": perplexity,
        "kl_mean": kl,
        "top1_agreement": agreement,
        "prefill_tok_s": float(prefill),
        "decode_tok_s": decode,
        "ttft_s": 128 / prefill,
        "peak_load_bytes": 1_400_000_000,
        "peak_run_bytes": int((megabytes + 720) * 1e6),
        "quantize_s": 3.2,
    }
    record |= {
        "model_description": "A test's model.",
        "revision": None,
        "digest": "0" * 64,
        "text": {"name": "a text", "sha256": "1" * 64},
        "window": 512,
        "stride": 512,
        "seed": 0,
        "threads": 2,
        "compute_dtype": "float32",
        "device": "cpu",
        "notes": [],
        "command": f"python -m qcore compare {model} --recipes {name}",
        "evaluation": evaluation(name),
        "environment": {
            "cpu": "A test's processor",
            "cores": 2,
            "flags": ["avx2"],
            "read_bandwidth": 25e9,
            "memory_total": 24e9,
            "memory_available": 20e9,
            "libraries": {"torch": "2.13.0"},
        },
        "generations": generations(name),
        "ledger": ledger(name),
    }
    return base | figures | changes


def evaluation(name: str) -> dict:
    """Return eight windows with the perplexity of the recipe, and the baseline figures that verdicts need."""
    tokens, kl, perplexity = [512] * 7 + [511], FIGURES[name][3], FIGURES[name][2]
    base = [count * math.log(FIGURES["fp32"][2]) + 20.0 * (-1) ** i for i, count in enumerate(tokens)]
    more = math.log(perplexity / FIGURES["fp32"][2])
    nll = [
        each + count * more + (name != "fp32") * 4.0 * (-1) ** i
        for i, (each, count) in enumerate(zip(base, tokens, strict=True))
    ]
    divergence = {
        "kl_mean": kl,
        "window_kl": [kl * count for count in tokens],
        "window_base_nll": base,
        "harmful_flips": 80,
        "beneficial_flips": 63,
    }
    return {
        "tokens_scored": 4095,
        "window": 512,
        "stride": 512,
        "window_tokens": tokens,
        "window_nll": nll,
        "perplexity": perplexity,
        "divergence": None if name == "fp32" else divergence,
    }


def choices(name: str) -> dict:
    """Return answers to 64 questions; a recipe with fewer bits gets fewer right."""
    right = round(16 + 37 * FIGURES[name][4])

    def share(hits: int) -> dict:
        return {
            "right": hits,
            "estimate": hits / 64,
            "low": max(0.0, hits / 64 - 0.1),
            "high": min(1.0, hits / 64 + 0.1),
        }

    change = {} if name == "fp32" else {"lost_and_gained": {"lost": 54 - right, "gained": 1, "p": 0.5}}
    return {
        "name": "general knowledge, packaged",
        "sha256": "2" * 64,
        "questions": 64,
        "chance": 0.25,
        "accuracy": share(right),
        "accuracy_by_length": share(right - 1),
        **change,
    }


def generations(name: str) -> list[dict]:
    """Return three answers; those of quantized models diverge from the baseline's after a few tokens."""
    answers = []
    for i, (kind, prompt, text) in enumerate(
        (
            ("facts", "The capital of France is", " Paris, the largest city of the country."),
            ("code", "def add(a, b):", "\n    return a + b\n"),
            ("language", STRANGE, STRANGE),
        )
    ):
        changed = (
            text if name in ("fp32", "int8") or i == 1 else text.replace("largest", "second") + " And so on."
        )
        tokens = list(range(10))
        at = None if changed == text else 4 + i
        answers.append(
            {
                "id": f"{kind}-{i}",
                "kind": kind,
                "prompt": prompt,
                "text": changed,
                "tokens": tokens,
                "first_divergence": at,
            }
        )
    return answers


def ledger(name: str) -> dict:
    """Return a ledger of two tensors: one quantized, one kept."""
    quantized = name != "fp32"
    rows = [
        {
            "name": "model.layers.0.mlp.up_proj.weight",
            "shape": [128, 64],
            "dtype": "float32",
            "format": name if quantized else None,
            "bytes_before": 32768,
            "bytes_after": 8192 if quantized else 32768,
            "weights": 8192,
            "reason": None,
            "intended": True,
        },
        {
            "name": "model.norm.weight",
            "shape": [64],
            "dtype": "float32",
            "format": None,
            "bytes_before": 256,
            "bytes_after": 256,
            "weights": 64,
            "reason": "a vector, which the recipe keeps",
            "intended": True,
        },
    ]
    return {"recipe": name, "rows": rows}


def labeled(names=FIGURES) -> list[dict]:
    """Return rows as the compare page joins them."""
    return [{**row(name), "label": name} for name in names]


def spec(model: str, names) -> dict:
    """Return `RunSpec.to_dict()` of a run."""
    return {
        "model": model,
        "recipes": [_recipe(name) for name in names],
        "revision": None,
        "text": None,
        "tokens": 4096,
        "window": 512,
        "stride": None,
        "prompt_tokens": 128,
        "new_tokens": 32,
        "repeats": 3,
        "generate": True,
        "prompts": None,
        "generate_tokens": 32,
        "seed": 0,
        "threads": None,
        "device": "cpu",
    }


def write_run(
    home: Path,
    rows: list[dict],
    *,
    state: str = "done",
    model: str = "smollm2-135m",
    second: int = 0,
    pending=(),
    **status,
) -> str:
    """Write a run into the cache folder `home` as a worker does, and return its id. `pending` recipes have no
    row yet."""
    run_id = f"20250102-0304{second:02d}-abcdef"
    folder = home / "runs" / run_id
    names = [each["recipe"] for each in rows] + list(pending)
    about = {
        "run_id": run_id,
        "state": state,
        "phase": state.capitalize(),
        "created_at": 1735787045.0 + second,
        "started_at": 1735787046.0,
        "finished_at": 1735787246.0 + second,
        "digest": "x",
        "error": None,
        "recipes": [{"recipe": each["recipe"], "state": each["status"], "phase": ""} for each in rows]
        + [{"recipe": name, "state": "waiting", "phase": ""} for name in pending],
    }
    write_json(folder / "spec.json", spec(model, names))
    for position, each in enumerate(rows):
        each = {**each, "record": {**each["record"], "run_id": run_id, "model": model}}
        write_json(folder / "rows" / f"{position:02d}.json", each)
    write_json(folder / "status.json", about | status)
    return run_id


def _recipe(name: str) -> dict:
    try:
        return recipes.parse(name).to_dict()
    except InputError:
        return {"name": name}


assert all(math.isfinite(value) for figures in FIGURES.values() for value in figures)

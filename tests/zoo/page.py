"""docs/models.md, from the rows of a whole run."""

import re
from collections import defaultdict
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from tests.zoo.overrides import IMPOSSIBLE
from tests.zoo.rows import Row

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_BASICS = ("load", "int8", "int4-g32", "nf4", "int4-g32-head8", "plan", "reload", "generate", "evaluate")
_EXPORTS = ("gguf", "compressed-tensors", "gptq", "onnx")
_INTRODUCTION = """# Models

Written by `python -m tests.zoo`; do not edit. transformers {version} registers {registered} model types
with a causal language model class. {driven} of them were driven through qcore as tiny checkpoints: random
weights, two to four layers, every kind of layer of the architecture among them, widths of 64 to 128 that are
often not a multiple of 32, one or two key-value heads, head sizes other than width / heads, tied and untied,
some in bfloat16, some in several files. A tiny checkpoint shows that an architecture is read and computed as
transformers does. It shows nothing about speed or quality.

| column | means |
| --- | --- |
| quantized | {basics} |
| GPTQ | int4-g32-gptq quantizes it |
| streamed | `--stream` writes the same bytes as quantizing in memory |
| step | "native": a decode step is one native call; "modules": the modules run one by one |
| 8-bit cache | keys and values can be kept in 8 bits |
| exports | targets for int4-g32-sym (GGUF: gguf-q8_0); ONNX was checked from headers only |

{count} of {driven} pass everything in the first column. Below the table is what is not done, and why.
"""
_BASICS_ARE = (
    "logits equal to transformers', bit by bit; int8, int4-g32, nf4 and head8 cover every linear weight or "
    "say why not; planned bytes within 1 %; bit-equal when loaded in a fresh process; the perplexity of "
    "transformers' logits; the same greedy tokens alone, in a batch, natively, by modules and by `generate`"
)


def write(rows: list[Row]) -> Path:
    """Write the page and return its path."""
    by_name: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_name[row.architecture][row.check] = row
    lines = [_introduction(by_name)]
    lines.append("| architecture | class | quantized | GPTQ | streamed | step | 8-bit cache | exports |")
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, checks in sorted(by_name.items()):
        lines.append(_line(name, checks))
    lines += ["", "## What is not done, and why", ""]
    for name, checks in sorted(by_name.items()):
        lines += _reasons(name, checks)
    lines += ["", "Exports:", "", *_exports(by_name)]
    lines += ["", "## What transformers itself cannot run", "", *_impossible(by_name), ""]
    PAGE.write_text("\n".join(lines))
    return PAGE


def passes(checks: dict[str, Row]) -> bool:
    """Return whether everything of the column "quantized" passed."""
    return all(checks[check].outcome == "ok" for check in _BASICS if check in checks) and "load" in checks


def _introduction(by_name: dict[str, dict[str, Row]]) -> str:
    return _INTRODUCTION.format(
        version=transformers.__version__,
        registered=len(CLASSES),
        driven=len(by_name),
        basics=_BASICS_ARE,
        count=sum(map(passes, by_name.values())),
    )


def _line(name: str, checks: dict[str, Row]) -> str:
    def mark(check: str) -> str:
        row = checks.get(check)
        return (
            "" if row is None else {"ok": "yes", "refused": "no", "fault": "**fault**"}.get(row.outcome, "–")
        )

    generated = checks.get("generate")
    step = "" if generated is None or generated.outcome != "ok" else generated.text.removesuffix(" step")
    failed = [check for check in _BASICS if check in checks and checks[check].outcome != "ok"]
    done = [target for target in _EXPORTS if target in checks and checks[target].outcome == "ok"]
    cells = [
        f"`{name}`",
        CLASSES.get(name, ""),
        "yes" if passes(checks) else f"not {', '.join(failed)}" if failed else "–",
        mark("int4-g32-gptq"),
        mark("stream"),
        step,
        mark("kv"),
        ", ".join(done) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def _reasons(name: str, checks: dict[str, Row]) -> list[str]:
    """Return one list item per sentence, with the checks that it stands for; exports are left out."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for check, row in checks.items():
        if row.outcome in ("refused", "fault") and check not in _EXPORTS:
            found[row.outcome, row.text].append(check)
    return [
        f"- `{name}`, {', '.join(listed)}{' (fault)' if outcome == 'fault' else ''}: {_plain(text)}"
        for (outcome, text), listed in found.items()
    ]


def _exports(by_name: dict[str, dict[str, Row]]) -> list[str]:
    """Return one list item per target and sentence, names of tensors and of the architecture left out."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, checks in sorted(by_name.items()):
        for target in _EXPORTS:
            row = checks.get(target)
            if row is not None and row.outcome in ("refused", "fault"):
                general = re.sub(r" Did you mean .*| Known: .*", "", row.text.replace(f"'{name}'", "…"))
                general = re.sub(r"\b\w+(\.\w+){2,}\b", "…", general)
                found[target, general].append(name)
    return [
        f"- {target}: {_plain(text)} ({', '.join(f'`{name}`' for name in listed)})"
        for (target, text), listed in sorted(found.items(), key=lambda item: (item[0][0], -len(item[1])))
    ]


def _impossible(by_name: dict[str, dict[str, Row]]) -> list[str]:
    lines = [f"- `{name}`: {why}" for name, why in sorted(IMPOSSIBLE.items())]
    for name, checks in sorted(by_name.items()):
        upstream = {row.text: row.check for row in checks.values() if row.outcome == "transformers"}
        lines += [f"- `{name}`, {check}: {_plain(text)[:200]}" for text, check in upstream.items()]
    return lines


def _plain(text: str) -> str:
    """Return `text` so that Markdown shows it as it stands, without folders."""
    text = re.sub(r"/\S+/(original|even)", "The checkpoint", text)
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)

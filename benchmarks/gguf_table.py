"""A result of `gguf_types.py` as text, and as the table in docs/benchmarks.md.

python benchmarks/gguf_table.py        writes the newest gguf-types-*.json in results/ into the page
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

from benchmarks import marks  # noqa: E402

NAME = "gguf"
HEAD = (
    "| type | layers | llama.cpp: MB | mean KL | qcore's recipe | MB | mean KL | KL, ours / theirs | bar | |",
    "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
)


def ratio(row: dict) -> float:
    """Return our mean KL over theirs."""
    return row["ours"]["kl_mean"] / row["theirs"]["kl_mean"]


def holds(row: dict) -> bool:
    """Return whether the bar holds."""
    return ratio(row) < 1 if row["bar"] == 1 else ratio(row) <= row["bar"]


def line(row: dict) -> str:
    """Return a row of the table."""
    theirs, ours = row["theirs"], row["ours"]
    cells = (
        row["type"],
        f"`{row['layers']}`" if row["layers"] else "all",
        f"{theirs['stored_bytes'] / 1e6:.3f}",
        _loss(theirs),
        f"`{ours['name']}`",
        f"{ours['stored_bytes'] / 1e6:.3f}",
        _loss(ours),
        f"{ratio(row):.3f} x",
        "lower" if row["bar"] == 1 else f"{row['bar']:.2f} x",
        "holds" if holds(row) else "MISSED",
    )
    return f"| {' | '.join(cells)} |"


def _loss(row: dict) -> str:
    """Return the mean KL with three digits or more."""
    return f"{row['kl_mean']:.5f}" if row["kl_mean"] >= 1e-3 else f"{row['kl_mean']:.2e}"


def page(result: dict) -> str:
    """Return the section of docs/benchmarks.md: a table per model, and the conditions."""
    parts = []
    for each in result["models"]:
        how, base = each["conditions"], each["baseline"]
        title = how["model"]
        parts += [f"{title}, fp32 perplexity {base['perplexity']:.2f}:", "", *HEAD]
        parts += [line(row) for row in each["pairs"]] + [""]
    where, how = result["environment"], result["models"][0]["conditions"]
    libraries = ", ".join(f"{name} {version}" for name, version in where["libraries"].items())
    parts.append(
        f"{marks.day(result)}, {where['cpu']}; {how['tokens']:,} tokens of {how['text']} in windows of "
        f"{how['window']}; calibration and importance matrix from {how['calibration_tokens']:,} tokens of "
        f"{how['calibration']}. MB are those of the compared layers as stored; *pure* gives every tensor "
        f"the type, in place of the file type's mixture. {libraries}."
    )
    if "file" in result:
        parts.append(f"\nFrom [{result['file']}](../benchmarks/results/{result['file']}).")
    return "\n".join(parts)


def file_name(result: dict) -> str:
    """Return a name such as "gguf-types-some-processor-2025-01-31.json"."""
    machine = marks.slug(result["environment"]["cpu"])
    return f"gguf-types-{machine}-{marks.day(result)}.json"


def document() -> str:
    """Return docs/benchmarks.md with the newest result. Raise `FileNotFoundError` without a result."""
    saved = marks.results(lambda name: name.startswith("gguf-types-"))
    if not saved:
        raise FileNotFoundError("There is no result yet: run python benchmarks/gguf_types.py first.")
    return marks.put(marks.PAGE.read_text(), NAME, page(saved[-1]))


if __name__ == "__main__":
    marks.PAGE.write_text(document())

"""A result of `speed.py --zoo` as text for a terminal, and as the table in docs/speed.md.

python benchmarks/zoo_table.py        writes the newest result in results/ into the document
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

from benchmarks import marks  # noqa: E402
from benchmarks.zoo import LLAMA, RECIPES  # noqa: E402

PAGE = marks.ROOT / "docs" / "speed.md"
_HEADS = (
    "architecture",
    "in the shape of",
    "weights",
    "int4, tok/s",
    "of modules",
    "prefill",
    "int8, tok/s",
    "of modules",
    "prefill",
    LLAMA,
    "prefill",
)


def text(result: dict) -> str:
    """Return the table for a terminal."""
    lines = [_HEADS, *(_cells(row) for row in result["rows"])]
    return "\n".join([*marks.columns(lines), "", _conditions(result)])


def page(result: dict) -> str:
    """Return the table for docs/speed.md with its conditions."""
    lines = ["| " + " | ".join(_HEADS) + " |", "| --- | --- |" + " ---: |" * (len(_HEADS) - 2)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in result["rows"]]
    missing = {row["no_llama_cpp"] for row in result["rows"] if row["no_llama_cpp"]}
    notes = [f"No llama.cpp figure where {'; '.join(sorted(missing))}."] if missing else []
    return "\n".join([*lines, "", _conditions(result), *notes])


def _cells(row: dict) -> tuple[str, ...]:
    name = row["architecture"].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    cells = [name, row["shape"], f"{row['weights'] / 1e6:.0f} M"]
    for recipe in RECIPES:
        cells.append(f"{row['rates'][recipe]['decode']:.0f}")
        cells += [_ratio(row, f"{recipe} against modules, {figure}") for figure in ("decode", "prefill")]
    cells += [_ratio(row, f"{RECIPES[0]} against {LLAMA}, {figure}") for figure in ("decode", "prefill")]
    if row["others_busy"] >= marks.BUSY:
        cells[0] += " (disturbed)"
    return tuple(cells)


def _ratio(row: dict, name: str) -> str:
    return f"{row['ratios'][name]:.2f} x" if name in row["ratios"] else "–"


def _conditions(result: dict) -> str:
    how, where = result["conditions"], result["environment"]
    return (
        f"{marks.day(result)}, {where['cpu']}, {how['threads']} threads: random models of about "
        f"{how['weights'] / 1e6:.0f} million weights with a vocabulary of {how['vocabulary']:,}; "
        f"{how['steps']} tokens after a prompt of {how['prompt_tokens']}; recipes {' and '.join(RECIPES)}. "
        f"Speeds are medians of {how['rounds']} rounds, ratios the median of those within a round: the "
        f"native step over the modules of the same model, and over {LLAMA}'s Q4_0 of the same weights."
    )


def main() -> None:
    """Write the table into docs/speed.md."""
    found = marks.results(lambda name: name.startswith("zoo-"))
    if not found:
        sys.exit("There is no result yet. Run: python benchmarks/speed.py --zoo")
    PAGE.write_text(marks.put(PAGE.read_text(), "zoo", page(found[-1])))


if __name__ == "__main__":
    main()

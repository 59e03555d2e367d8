"""A result of `quality.py` for people: as text, and as the README's table.

python benchmarks/quality_table.py [FILE]        puts FILE, or the newest quality-*.json in results/, between the README's two marks
"""

import json
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- quality: written by benchmarks/quality_table.py -->", "<!-- /quality -->"
BUSY = 0.15  # processors' worth of other work from which a time is called disturbed


def text(result: dict) -> str:
    """The tables for a terminal, then what was left out, and the conditions."""
    against = _yardstick(result)
    rows = [
        (
            "",
            "bits/weight",
            "perplexity",
            "mean KL",
            "same top-1",
            "seconds",
            *([f"KL / {against['name']}"] if against else []),
            "",
        )
    ]
    for row in result["rows"]:
        share = [_number(row["kl_mean"] / against["kl_mean"], 3)] if against else []
        busy = row["seconds"] >= 1 and row["others_busy"] > BUSY
        rows.append((row["name"], *_cells(row), *share, "time disturbed" * busy))
    checks = [("", "ours", "value", "bar", "")]
    checks += [
        (each["name"], each["ours"] or "–", _value(each), _limit(each), verdict(each))
        for each in result["comparisons"]
    ]
    shown = [*_columns(rows), "", *(_columns(checks) if len(checks) > 1 else []), ""]
    shown += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    shown += [f"{row['name']}: {note}" for row in result["rows"] for note in row["notes"]]
    return "\n".join([*shown, "", conditions(result)])


def markdown(result: dict) -> str:
    """The README's section between the marks, without them."""
    lines = ["| method | bits per weight | perplexity | mean KL, nats | same top-1 | seconds |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    own = set(result["own"])
    for row in sorted(result["rows"], key=lambda row: -row["bits_per_weight"]):
        name = f"`{row['name']}`" if row["name"] in own else row["name"]
        lines.append(f"| {name} | {' | '.join(_cells(row))} |")
    lines += ["", "| | ours | value | bar | |", "| --- | --- | ---: | ---: | --- |"]
    lines += [
        f"| {each['name']} | {each['ours'] or '–'} | {_value(each)} | {_limit(each)} | {verdict(each)} |"
        for each in result["comparisons"]
    ]
    lines += [f"\nLeft out: {name} ({reason})." for name, reason in result["left_out"].items()]
    return "\n".join([*lines, "", conditions(result)])


def verdict(each: dict) -> str:
    """One or two words: what became of a comparison."""
    return {True: "holds", False: "MISSED", None: each.get("why", "")}[each["holds"]]


def conditions(result: dict) -> str:
    """One paragraph: when, on what, over which texts, with which versions."""
    where, how = result["environment"], result["conditions"]
    libraries = ", ".join(f"{name} {version}" for name, version in where["libraries"].items())
    return (
        f"{_day(result)}, {where['cpu']}, {how['threads']} threads, model {how['model']}; {how['tokens']} tokens of {how['text']} in "
        f"windows of {how['window']}; calibration on {how['calibration_tokens']} tokens of {how['calibration']}. Only the linear layers in "
        "the blocks are quantized, and bits per weight count those: codes, scales, zero points and tables as stored. Embedding, head and "
        "norms are the baseline's in every row, also where a peer's own tool would quantize them. Seconds are those of quantizing, "
        f"calibration included; loading the model and scoring it are not. {libraries}."
    )


def file_name(result: dict) -> str:
    """ "quality-some-processor-2025-01-31.json"."""
    machine = re.sub(r"[^a-z0-9]+", "-", result["environment"]["cpu"].lower()).strip("-")
    return f"quality-{machine}-{_day(result)}.json"


def put(readme: str, result: dict) -> str:
    """`readme` with the table between its marks. Raises `ValueError` if they are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{markdown(result)}\n\n{END}{after}"


def _yardstick(result: dict) -> dict | None:
    return next((row for row in result["rows"] if row["name"] == "bitsandbytes nf4"), None)


def _cells(row: dict) -> tuple[str, ...]:
    """bits, perplexity, KL, top-1, seconds."""
    return (
        f"{row['bits_per_weight']:.2f}",
        f"{row['perplexity']:.2f}",
        _number(row["kl_mean"], 4),
        f"{100 * row['top1_agreement']:.1f} %",
        f"{row['seconds']:.1f}",
    )


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.1e}"


def _value(each: dict) -> str:
    if each["value"] is None:
        return "–"
    return f"{each['value']:.0f} s" if each["kind"] == "seconds" else f"{each['value']:.3f} x"


def _limit(each: dict) -> str:
    if each["kind"] == "seconds":
        return f"{each['bar']} s"
    return "lower" if each["bar"] == 1 else f"{each['bar']:.2f} x"


def _columns(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for line in lines
    ]


def _day(result: dict) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(result["started_at"]))


def main() -> None:
    """Write the table into the README."""
    files = [Path(name) for name in sys.argv[1:]] or sorted(
        (ROOT / "benchmarks/results").glob("quality-*.json"), key=_started
    )[-1:]
    if len(files) != 1:
        sys.exit("There is no result yet: run python benchmarks/quality.py first, or give one file.")
    readme = ROOT / "README.md"
    readme.write_text(put(readme.read_text(), json.loads(files[0].read_text())))


def _started(file: Path) -> float:
    return json.loads(file.read_text())["started_at"]


if __name__ == "__main__":
    main()

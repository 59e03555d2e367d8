"""A result of `quality.py` as text for a terminal, and as the tables in README.md and docs/benchmarks.md.

python benchmarks/quality_table.py        writes the newest quality-*.json in results/ into both documents
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

from benchmarks import marks  # noqa: E402


def text(result: dict) -> str:
    """Return the tables for a terminal, followed by what was left out and the conditions."""
    against = _yardstick(result)
    heads = ("", "bits/weight", "perplexity", "mean KL", "same top-1", "seconds")
    rows = [(*heads, *([f"KL / {against['name']}"] if against else []), "")]
    for row in result["rows"]:
        share = [_number(row["kl_mean"] / against["kl_mean"], 3)] if against else []
        busy = row["seconds"] >= 1 and row["others_busy"] > marks.BUSY
        rows.append((row["name"], *_cells(row), *share, "time disturbed" * busy))
    checks = [("", "ours", "value", "bar", "")]
    checks += [
        (each["name"], each["ours"] or "–", _value(each), _limit(each), verdict(each))
        for each in result["comparisons"]
    ]
    shown = [*marks.columns(rows), "", *(marks.columns(checks) if len(checks) > 1 else []), ""]
    shown += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    shown += [f"{row['name']}: {note}" for row in result["rows"] for note in row["notes"]]
    return "\n".join([*shown, "", conditions(result)])


def readme(result: dict) -> str:
    """Return the README's table: each peer beside the qcore recipe that it is compared with."""
    rows = {row["name"]: row for row in result["rows"]}
    lines = [
        "| peer | bits per weight | mean KL | qcore recipe | bits per weight | mean KL | KL, ours / theirs |"
    ]
    lines += ["| --- | ---: | ---: | --- | ---: | ---: | ---: |"]
    for each in result["comparisons"]:
        if each["kind"] == "peer" and each["ours"]:
            theirs, ours = rows[each["theirs"]], rows[each["ours"]]
            cells = (each["theirs"], *_size_and_loss(theirs), f"`{each['ours']}`", *_size_and_loss(ours))
            lines.append(f"| {' | '.join(cells)} | {each['value']:.2f} x |")
    how, source = result["conditions"], f"[{marks.day(result)}](benchmarks/results/{result['file']})"
    baseline = next((row for row in result["rows"] if row["name"] == "fp32"), None)
    lines += ["", f"{how['model']}, {how['tokens']:,} tokens of {how['text']}"
              + (f" (fp32 perplexity {baseline['perplexity']:.2f})" if baseline else "")
              + f", mean KL divergence from fp32 in nats per token; {source}. "
              f"Only the linear layers in the blocks are quantized. {CHOICE}"]  # fmt: skip
    return "\n".join(lines)


CHOICE = (
    "Beside each peer stands the measured qcore recipe within 0.1 bits per weight of its size whose "
    "KL is smallest **on the scored text itself**: a choice made with the answer in view, which favors qcore."
)


def page(result: dict) -> str:
    """Return the section of docs/benchmarks.md: all rows, all bars, omissions, and the conditions."""
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
    source = f"[{result['file']}](../benchmarks/results/{result['file']})"
    return "\n".join([*lines, "", CHOICE, "", f"{conditions(result)} From {source}."])


def verdict(each: dict) -> str:
    """Return "holds", "MISSED", or what was not measured."""
    return {True: "holds", False: "MISSED", None: each.get("why", "")}[each["holds"]]


def conditions(result: dict) -> str:
    """Return one paragraph: date, machine, texts, what was counted, versions."""
    where, how = result["environment"], result["conditions"]
    libraries = ", ".join(f"{name} {version}" for name, version in where["libraries"].items())
    return (
        f"{marks.day(result)}, {where['cpu']}, {how['threads']} threads, model {how['model']}; "
        f"{how['tokens']} tokens of {how['text']} in windows of {how['window']}; calibration on "
        f"{how['calibration_tokens']} tokens of {how['calibration']}. "
        "Only the linear layers in the blocks are quantized, and bits per weight count those: "
        "codes, scales, zero points and tables as stored. Embedding, head and norms are the baseline's "
        "in every row, even where a peer's own tool would quantize them. Seconds are the time to quantize, "
        f"calibration included, without loading and scoring. {libraries}."
    )


def file_name(result: dict) -> str:
    """Return a name such as "quality-some-processor-2025-01-31.json"."""
    machine = marks.slug(result["environment"]["cpu"])
    return f"quality-{machine}-{marks.day(result)}.json"


def _yardstick(result: dict) -> dict | None:
    return next((row for row in result["rows"] if row["name"] == "bitsandbytes nf4"), None)


def _cells(row: dict) -> tuple[str, ...]:
    """Return bits, perplexity, KL, top-1, seconds."""
    bits, kl = _size_and_loss(row)
    return (
        bits,
        f"{row['perplexity']:.2f}",
        kl,
        f"{100 * row['top1_agreement']:.1f} %",
        f"{row['seconds']:.1f}",
    )


def _size_and_loss(row: dict) -> tuple[str, str]:
    return f"{row['bits_per_weight']:.2f}", _number(row["kl_mean"], 4)


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


def documents() -> dict:
    """Return README.md and docs/benchmarks.md with the newest result. Raise `FileNotFoundError` without a
    result."""
    saved = marks.results(lambda name: name.startswith("quality-"))
    if not saved:
        raise FileNotFoundError("There is no result yet: run python benchmarks/quality.py first.")
    return marks.written("quality", readme(saved[-1]), page(saved[-1]))


def main() -> None:
    """Write the tables into README.md and docs/benchmarks.md."""
    try:
        for file, text in documents().items():
            file.write_text(text)
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

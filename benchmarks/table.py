"""A result of `speed.py` for people: as text, and as the README's table.

python benchmarks/table.py [FILE]        puts FILE, or the newest file in results/, between the README's two marks
"""

import json
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- speed: written by benchmarks/table.py -->", "<!-- /speed -->"
BUSY = 0.15  # processors' worth of other work from which a run is called disturbed


def text(result: dict) -> str:
    """The table for a terminal, with machine and versions below."""
    lines = [("", "ours", "theirs", "ratio", "bar", "")]
    for each in result["comparisons"]:
        lines.append((each["measure"], *_cells(each), "" if each["ratio"] >= each["bar"] else "BELOW"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for line in lines
    ]
    busy = result["others_busy"]
    state = "DISTURBED: " if busy["median"] > BUSY else ""
    shown += [
        "",
        conditions(result),
        f"{state}other programs kept {busy['median']:.2f} processors busy, {busy['most']:.2f} at most.",
    ]
    return "\n".join(shown)


def markdown(result: dict) -> str:
    """The README's section between the marks, without them."""
    lines = ["| measure | ours | theirs | ratio | bar |", "| --- | ---: | ---: | ---: | ---: |"]
    for each in result["comparisons"]:
        ours, theirs, ratio, bar = _cells(each)
        lines.append(
            f"| {each['measure']} | {ours} | {theirs} | {f'**{ratio}**' if each['ratio'] >= each['bar'] else ratio} | {bar} |"
        )
    return "\n".join([*lines, "", conditions(result)])


def conditions(result: dict) -> str:
    """One paragraph: when, on what, with which versions."""
    where, how = result["environment"], result["conditions"]
    libraries = ", ".join(f"{name} {version}" for name, version in where["libraries"].items())
    return (
        f"{_day(result)}, {where['cpu']}, {_widest(where['flags'])}, {how['threads']} threads, model {how['model']}, prompt of "
        f"{how['prompt_tokens']} tokens, {how['steps']} steps ({how['generate_tokens']} tokens through `generate`), medians; {libraries}."
    )


def file_name(result: dict) -> str:
    """ "some-processor-2-threads-2025-01-31.json"."""
    machine = re.sub(r"[^a-z0-9]+", "-", result["environment"]["cpu"].lower()).strip("-")
    return f"{machine}-{result['conditions']['threads']}-threads-{_day(result)}.json"


def put(readme: str, result: dict) -> str:
    """`readme` with the table between its marks. Raises `ValueError` if they are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{markdown(result)}\n\n{END}{after}"


def _cells(each: dict) -> tuple[str, str, str, str]:
    """ours, theirs, ratio, bar."""
    if each["unit"] == "bytes/s":
        rates = [f"{each[side] / 1e9:.1f} GB/s" for side in ("ours", "theirs")]
        return *rates, f"{100 * each['ratio']:.0f} %", f"{100 * each['bar']:.0f} %"
    rates = [
        f"{each[side]:.0f} tok/s" if each[side] >= 99.5 else f"{each[side]:.1f} tok/s"
        for side in ("ours", "theirs")
    ]
    return *rates, f"{each['ratio']:.2f} x", "faster" if each["bar"] == 1 else f"{each['bar']:.1f} x"


def _day(result: dict) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(result["started_at"]))


def _widest(flags: list[str]) -> str:
    known = {flag.lower() for flag in flags}
    return next(
        (
            name
            for flag, name in (("avx512_vnni", "AVX-512 VNNI"), ("avx2", "AVX2"), ("asimd", "NEON"))
            if flag in known
        ),
        "no SIMD",
    )


def main() -> None:
    """Write the table into the README."""
    kept = [
        file
        for file in (ROOT / "benchmarks/results").glob("*.json")
        if not file.name.startswith(("quality-", "streaming-"))
    ]
    files = [Path(name) for name in sys.argv[1:]] or sorted(kept, key=_started)[-1:]
    if len(files) != 1:
        sys.exit("There is no result yet: run python benchmarks/speed.py first, or give one file.")
    readme = ROOT / "README.md"
    readme.write_text(put(readme.read_text(), json.loads(files[0].read_text())))


def _started(file: Path) -> float:
    return json.loads(file.read_text())["started_at"]


if __name__ == "__main__":
    main()

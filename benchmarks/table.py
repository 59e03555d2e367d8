"""A result of `speed.py` as text for a terminal, and as the tables in README.md and docs/benchmarks.md.

python benchmarks/table.py        writes the newest result of each processor in results/ into both documents
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

from benchmarks import marks  # noqa: E402

USED = "generate_"  # ratios measured through transformers' `generate`, the path that users take
OTHERS = ("quality-", "streaming-", "gguf-", "zoo-")  # results of other benchmarks
FILES = "gguf_"  # ratios of GGUF files
OURS = "generate_int4_vs_fp32"  # their "ours" is the decode speed that all of these share


def text(result: dict) -> str:
    """Return the table for a terminal, followed by machine, versions and disturbance."""
    lines = [("", "ours", "theirs", "ratio", "bar", "")]
    lines += [(each["measure"], *_cells(each), _remark(each)) for each in result["comparisons"]]
    busy = result["others_busy"]
    state = "DISTURBED: " if busy["median"] > marks.BUSY else ""
    others = f"{state}other programs kept {busy['median']:.2f} cores busy, {busy['most']:.2f} at most."
    return "\n".join([*marks.columns(lines), "", conditions(result), others])


def readme(results: list[dict]) -> str:
    """Return the README's table: decode speed through `generate`, one column per processor."""
    heads = [f"{_processor(result)}, {_widest(result['environment']['flags'])}" for result in results]
    ratios = [{each["name"]: each for each in result["comparisons"]} for result in results]
    ours = ["**" + _rate(each[OURS]["ours"]) + "**" for each in ratios]
    lines = [_row("decode through `generate`", *heads), "| --- |" + " ---: |" * len(heads)]
    lines.append(_row("**qcore `int4-g32-head8`**", *ours))
    for name in [name for name in ratios[0] if name.startswith(USED)]:
        peer = ratios[0][name]["measure"].partition(" against ")[2]
        cells = [
            f"{_rate(each[name]['theirs'])} ({each[name]['ratio']:.1f} x)" if name in each else ""
            for each in ratios
        ]
        lines.append(_row("transformers fp32" if name == OURS else peer, *cells))
    how = results[0]["conditions"]
    sources = ", ".join(
        f"[{_processor(result)}, {marks.day(result)}](benchmarks/results/{result['file']})"
        for result in results
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {how['model']}, {how['threads']} threads, {how['generate_tokens']} tokens "
            f"after a prompt of {how['prompt_tokens']}, the programs in turns within one run; in brackets "
            "qcore's speed over theirs, the median of the ratios within a round. "
            f"Ratios hold for these processors, dates and versions: {sources}.",
        ]
    )


def page(result: dict) -> str:
    """Return the section of docs/benchmarks.md on one processor: every ratio, grouped by what was called."""
    lines = [f"### {_processor(result)}, {_widest(result['environment']['flags'])}, {marks.day(result)}", ""]
    kept = [each for each in result["comparisons"] if not _impossible(each)]
    for title, belongs in GROUPS:
        rows = [each for each in kept if belongs(each["name"])]
        if rows:
            lines += [
                f"{title}:",
                "",
                "| measure | ours | theirs | ratio | bar |",
                "| --- | ---: | ---: | ---: | ---: |",
            ]
            lines += [_row(each["measure"], *_bold(each)) for each in rows] + [""]
    if dropped := [each["measure"] for each in result["comparisons"] if _impossible(each)]:
        lines += [f"Left out, because they exceed 100 % of the read bandwidth, which was measured "
                  f"too low in that run: {'; '.join(dropped)}.", ""]  # fmt: skip
    source = f"[{result['file']}](../benchmarks/results/{result['file']})"
    return "\n".join([*lines, f"{conditions(result)} From {source}."])


GROUPS = (
    ("Through transformers' `generate`, the path that users take", lambda name: name.startswith(USED)),
    ("The loop in which `bench` and the playground generate: one native call per token",
     lambda name: not name.startswith((USED, FILES, "gemv_"))),
    ("GGUF files that `qcore export` wrote, loaded with their own codes",
     lambda name: name.startswith(FILES)),
    ("One product with a matrix", lambda name: name.startswith("gemv_")),
)  # fmt: skip


def conditions(result: dict) -> str:
    """Return one paragraph: date, machine, lengths and versions."""
    where, how = result["environment"], result["conditions"]
    libraries = ", ".join(f"{name} {version}" for name, version in where["libraries"].items())
    return (
        f"{marks.day(result)}, {where['cpu']}, {_widest(where['flags'])}, {how['threads']} threads, "
        f"model {how['model']}, prompt of {how['prompt_tokens']} tokens, {how['steps']} steps "
        f"({how['generate_tokens']} tokens through `generate`), medians; {libraries}."
    )


def file_name(result: dict) -> str:
    """Return a name such as "some-processor-2-threads-2025-01-31.json"."""
    machine = marks.slug(result["environment"]["cpu"])
    return f"{machine}-{result['conditions']['threads']}-threads-{marks.day(result)}.json"


def _impossible(each: dict) -> bool:
    """Whether a share of a limit exceeds the limit, so that the limit was measured wrong."""
    return each["unit"] == "bytes/s" and each["ratio"] > 1


def _remark(each: dict) -> str:
    if _impossible(each):
        return "ABOVE THE LIMIT: the reader was too slow"
    return "" if each["ratio"] >= each["bar"] else "BELOW"


def _cells(each: dict) -> tuple[str, str, str, str]:
    """Return ours, theirs, ratio, bar."""
    if each["unit"] == "bytes/s":
        rates = [f"{each[side] / 1e9:.1f} GB/s" for side in ("ours", "theirs")]
        return *rates, f"{100 * each['ratio']:.0f} %", f"{100 * each['bar']:.0f} %"
    bar = "faster" if each["bar"] == 1 else f"{each['bar']:.1f} x"
    return _rate(each["ours"]), _rate(each["theirs"]), f"{each['ratio']:.2f} x", bar


def _bold(each: dict) -> tuple[str, str, str, str]:
    ours, theirs, ratio, bar = _cells(each)
    return ours, theirs, f"**{ratio}**" if each["ratio"] >= each["bar"] else ratio, bar


def _rate(tokens: float) -> str:
    return f"{tokens:.0f} tok/s" if tokens >= 99.5 else f"{tokens:.1f} tok/s"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _processor(result: dict) -> str:
    return result["environment"]["cpu"].replace("(R)", "").removesuffix(" Processor")


def _widest(flags: list[str]) -> str:
    known = {flag.lower() for flag in flags}
    names = (("avx512_vnni", "AVX-512 VNNI"), ("avx2", "AVX2"), ("asimd", "NEON"))
    return next((name for flag, name in names if flag in known), "no SIMD")


def documents() -> dict:
    """Return README.md and docs/benchmarks.md with the newest result of each processor.

    A result of some ratios only (`--only` with `--json`) has a section of its own in docs/benchmarks.md until
    a later one of that processor has its ratios. The README shows results that have the ratios through
    `generate`.

    Raise `FileNotFoundError` if there is no result for the README.
    """
    saved = marks.results(lambda name: "-threads-" in name and not name.startswith(OTHERS))
    shown = current(saved)
    newest = {_cpu(result): result for result in shown if OURS in _names(result)}
    if not newest:
        raise FileNotFoundError("There is no result yet: run python benchmarks/speed.py first.")
    pages = "\n\n".join(page(result) for result in reversed(shown))
    return marks.written("speed", readme(list(newest.values())), pages)


def current(results: list[dict]) -> list[dict]:
    """Return the results, oldest first, without those whose ratios a later one of the same processor has."""
    return [
        result
        for i, result in enumerate(results)
        if not any(
            _cpu(result) == _cpu(later) and _names(result) <= _names(later) for later in results[i + 1 :]
        )
    ]


def _cpu(result: dict) -> str:
    return result["environment"]["cpu"]


def _names(result: dict) -> set[str]:
    return {each["name"] for each in result["comparisons"]}


def main() -> None:
    """Write the tables into README.md and docs/benchmarks.md."""
    try:
        for file, text in documents().items():
            file.write_text(text)
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

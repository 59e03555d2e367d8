"""Drive architectures through the checks of the zoo, and write docs/models.md.

    python -m tests.zoo llama gemma3_text    these
    python -m tests.zoo --all                every one; writes the page

Ends with status 1 if there are faults. A few architectures share a process, and what they saved is loaded in
a second one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qcore.base.home import home
from tests.zoo import names, wrapped_names
from tests.zoo.page import write
from tests.zoo.rows import Row, read

CHUNK = 8  # architectures per process
LIMIT = 900  # seconds per process


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo")
    parser.add_argument("names", nargs="*", help="model types; those for images and text end with :wrapped")
    parser.add_argument(
        "--all", action="store_true", help="all causal language models, and write docs/models.md"
    )
    parser.add_argument(
        "--rows", type=Path, help="also append the rows to this file, one JSON object per line"
    )
    parser.add_argument("--page", type=Path, help="write docs/models.md from the rows in this file, and end")
    given = parser.parse_args(arguments)
    if given.page:
        write(read(given.page.read_text().splitlines()))
        return 0
    known = names()
    if unknown := sorted(set(given.names) - set(known) - set(wrapped_names())):
        parser.error(f"Unknown architectures: {', '.join(unknown)}. Known are {', '.join(known)}.")
    if not (chosen := known if given.all else given.names):
        parser.error("Give names of architectures, or --all.")
    rows: list[Row] = []
    for row in driven(chosen):
        rows.append(row)
        if row.outcome != "ok":
            print(f"{row.architecture:26} {row.check:18} {row.outcome:12} {row.text}", flush=True)
        if given.rows:
            with given.rows.open("a") as file:
                file.write(row.line() + "\n")
    if given.all:
        write(rows)
    print(table(rows))
    return int(any(row.outcome == "fault" for row in rows))


def driven(chosen: list[str]) -> Iterator[Row]:
    """Yield the rows of the `chosen` architectures, each chunk from two processes."""
    for start in range(0, len(chosen), CHUNK):
        with tempfile.TemporaryDirectory(prefix="zoo-") as work:
            chunk = chosen[start : start + CHUNK]
            while chunk:
                rows, died = process(work, chunk)
                yield from rows
                chunk = chunk[chunk.index(died) + 1 :] if died else []
            rows, died = process(work, chosen[start : start + CHUNK], "--reload")
            yield from rows


def process(work: str, chunk: list[str], *options: str) -> tuple[list[Row], str | None]:
    """Drive `chunk` in a new process; return its rows, and the architecture at which it died, if it did."""
    environment = os.environ | {
        "QCORE_HOME": str(Path(work) / "home"),
        "QCORE_KERNELS": os.environ.get("QCORE_KERNELS", str(home() / "kernels")),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "tests.zoo.drive", *options, work, *chunk]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
        output, status, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as late:
        output, status, errors = _text(late.stdout), -1, f"longer than {LIMIT} s"
    rows = read(output.splitlines())
    if status == 0:
        return rows, None
    begun = [line.removeprefix("begin ") for line in output.splitlines() if line.startswith("begin ")]
    died = begun[-1] if begun else chunk[0]
    why = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
    check = "reload" if options else "process"
    return [*rows, Row(died, check, "fault", f"the process ended with status {status}: {why[:300]}")], died


def _text(output: str | bytes | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


def table(rows: list[Row]) -> str:
    """Return the number of outcomes per check."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.check, Counter())[row.outcome] += 1
    lines = [f"{'check':20}{'ok':>8}{'refused':>9}{'fault':>7}{'transformers':>14}"]
    for check, count in counts.items():
        lines.append(
            f"{check:20}{count['ok']:>8}{count['refused']:>9}{count['fault']:>7}{count['transformers']:>14}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

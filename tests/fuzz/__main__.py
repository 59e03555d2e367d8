"""Feed mutated files to the parsers of untrusted input, and add what came of it to a record.

    python -m tests.fuzz                                  the parsers, and how many inputs each has seen
    python -m tests.fuzz safetensors gguf --inputs 1000000
    python -m tests.fuzz --all --minutes 40               the same time for each
    python -m tests.fuzz manifest --replay                the findings in the record again

A record, benchmarks/results/fuzz-PARSER.json, grows with every call: runs continue behind the last batch, and
their counts add up. A finding that no longer fails is counted as fixed. Ends with status 1 if a finding is
left.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.fuzz import loop
from tests.fuzz.loop import Finding, Outcome
from tests.fuzz.parsers import PARSERS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GOAL = 1_000_000
_KEPT = 20  # findings in a record


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="PARSER", help=", ".join(PARSERS))
    parser.add_argument("--all", action="store_true", help="every parser")
    parser.add_argument("--inputs", type=int, default=0, help="inputs per parser in this call")
    parser.add_argument(
        "--goal", type=int, default=0, help="run until a parser has seen so many in all calls"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="minutes per parser")
    parser.add_argument("--replay", action="store_true", help="only try the findings of the record again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of records")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(PARSERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARSERS)}")
    names = list(PARSERS) if given.all else given.names
    if not names:
        for name in PARSERS:
            record = read(given.results, name)
            print(f"{name:14} {record['inputs']:>9,} inputs, {len(record['findings'])} findings")
        return 0
    left = 0
    for name in names:
        record = read(given.results, name)
        wanted = given.inputs or max(0, given.goal - record["inputs"]) or (0 if given.goal else GOAL)
        seconds = 60 * given.minutes if given.minutes else float("inf")
        left += one(name, record, given.results, 0 if given.replay else wanted, seconds)
    return int(left > 0)


def one(name: str, record: dict, results: Path, wanted: int, seconds: float) -> int:
    """Run one parser, write its record, and return the number of findings that are left."""
    known = [Finding(**each) for each in record["findings"]]
    kept = loop.replay(name, known)
    record["fixed"] += len(known) - len(kept)
    total, began = Outcome(findings=kept), time.time()
    if wanted:
        for batch, outcome in loop.run(name, record["next_batch"], wanted, seconds):
            total.add(outcome)
            record["next_batch"] = batch
        record["runs"].append(
            {
                "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
                "commit": _commit(),
                "inputs": total.inputs,
                "accepted": total.accepted,
                "seconds": round(time.time() - began, 1),
                "slowest_ms": round(1000 * total.slowest, 1),
                "most_growth_mb": round(total.grown / 1e6, 1),
                "new_findings": len(total.findings) - len(kept),
            }
        )
    record["inputs"] += total.inputs
    record["accepted"] += total.accepted
    record["findings"] = [asdict(each) for each in total.findings[:_KEPT]]
    results.mkdir(parents=True, exist_ok=True)
    _path(results, name).write_text(json.dumps(record, indent=1) + "\n")
    rate = f", {1e6 * total.seconds / total.inputs:.0f} us each" if total.inputs else ""
    print(
        f"{name:14} {total.inputs:>9,} inputs{rate}, {total.accepted:,} accepted; "
        f"{record['inputs']:,} in all, {len(total.findings)} findings"
    )
    for each in total.findings:
        print(f"  {each.kind}: {each.where}: {each.detail[:160]} (batch {each.batch}, input {each.index})")
    return len(total.findings)


def read(results: Path, name: str) -> dict:
    """Return the record of a parser; a new one if there is none."""
    if _path(results, name).exists():
        return json.loads(_path(results, name).read_text())
    limits = {"seconds": loop.SECONDS, "bytes": loop.BYTES, "message_characters": loop.LONGEST_MESSAGE}
    new = {"parser": name, "reads": PARSERS[name].reads, "limits": limits, "inputs": 0, "accepted": 0}
    return {**new, "fixed": 0, "findings": [], "next_batch": 0, "runs": []}


def _path(results: Path, name: str) -> Path:
    return results / f"fuzz-{name}.json"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())

"""The native step when it has less than whole processors: on a core that another process uses, too, and under
a CPU quota.

    python benchmarks/contention.py [--seconds 5] [--rounds 3] [--json FILE]

A random model in the shape of SmolLM2-135M decodes in processes of its own, which the benchmark pins to
cores and puts into a control group with a quota (that needs root, or a delegated group). "Reached" is its
speed over that of one thread on a free core, times the processor time that it may have:

    reached = tokens per second / (allowed cores · tokens per second of one thread on one free core)

"default" is the number of threads that qcore chooses. The conditions take turns; each figure is the median of
the rounds. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from benchmarks import marks, pipe  # noqa: E402
from qcore.base.cgroups import ROOT as GROUPS  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
RECIPE, PROMPT = "int4-g32-head8", 32
PERIOD = 100_000  # microseconds of a quota's period: the kernel's default
BUSY = "while True: pass"


@dataclass(frozen=True)
class Condition:
    """`cores`: the number of cores that the process is pinned to; `busy`: how many of them run another busy
    process; `quota`: cores' worth of time, None without a quota; `threads`: None for qcore's default."""

    cores: int
    busy: int = 0
    quota: float | None = None
    threads: int | None = None

    @property
    def allowed(self) -> float:
        """Return the cores' worth of time that the process may have beside an equal competitor per core."""
        free = self.cores - self.busy / 2
        return free if self.quota is None else min(free, self.quota)

    @property
    def name(self) -> str:
        """Return the condition as a phrase."""
        words = [f"{self.cores} core{'s' * (self.cores > 1)}"]
        words += [f"{self.busy} of them contended" if self.cores > 1 else "contended"] * bool(self.busy)
        words += [f"a quota of {self.quota}"] * (self.quota is not None)
        return ", ".join(words)


FREE = Condition(1, threads=1)  # the yardstick


def conditions(cores: int, quotas: bool) -> list[Condition]:
    """Return what is measured on a machine with `cores` cores, with quotas if groups can be made."""
    where = [Condition(1), Condition(1, busy=1)]
    if cores > 1:
        where += [Condition(2), Condition(2, busy=1), Condition(2, busy=2)]
    if quotas:
        where += [Condition(min(2, cores), quota=quota) for quota in (0.5, 1.0, 1.25, 1.5)]
    return [
        Condition(each.cores, each.busy, each.quota, threads) for each in where for threads in (None, 1, 2)
    ]


def group_parent() -> Path | None:
    """Return the folder in which this process can make control groups with a CPU quota, or None."""
    one, two = GROUPS / "cpu", GROUPS
    if (one / "cpu.cfs_quota_us").exists() and os.access(one, os.W_OK):
        return one
    control = two / "cgroup.subtree_control"
    if control.exists() and "cpu" in control.read_text().split() and os.access(two, os.W_OK):
        return two
    return None


@contextmanager
def group(parent: Path, quota: float) -> Iterator[Path]:
    """Make a control group with a quota of `quota` cores below `parent`; yield its folder."""
    folder = parent / f"qcore-benchmark-{os.getpid()}"
    folder.mkdir()
    try:
        if (folder / "cpu.max").exists():
            (folder / "cpu.max").write_text(f"{round(quota * PERIOD)} {PERIOD}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(round(quota * PERIOD)))
        yield folder
    finally:
        folder.rmdir()


def busy(core: int) -> subprocess.Popen:
    """Start a process that keeps `core` busy."""
    return subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", BUSY])


def measure(worker: pipe.Worker, condition: Condition, seconds: float) -> dict[str, float]:
    """Return "tok_s", "p50_ms", "p99_ms", "threads" and "used" (cores' worth of time) of the process under
    `condition`."""
    home = group_parent()
    with ExitStack() as stack:
        if condition.quota is not None and home is not None:
            folder = stack.enter_context(group(home, condition.quota))
            (folder / "cgroup.procs").write_text(str(worker.pid))
            stack.callback((home / "cgroup.procs").write_text, str(worker.pid))
        for core in sorted(os.sched_getaffinity(0))[: condition.busy]:
            other = busy(core)
            stack.callback(other.wait)
            stack.callback(other.kill)
        return worker.measure(json.dumps({"threads": condition.threads, "seconds": seconds}))[0]


@contextmanager
def workers(counts: Iterable[int]) -> Iterator[dict[int, pipe.Worker]]:
    """Start a process for each number of cores, pinned to the first ones; yield them once all have
    loaded."""
    mine = os.sched_getaffinity(0)
    with ExitStack() as stack:
        found = {}
        for count in counts:
            os.sched_setaffinity(0, sorted(mine)[:count])  # inherited by the process and all of its threads
            found[count] = stack.enter_context(
                pipe.Worker(f"{count} cores", "contention", {"threads": count})
            )
            os.sched_setaffinity(0, mine)
        for worker in found.values():
            worker.ready()
        yield found


def run(seconds: float, rounds: int) -> dict:
    """Measure all conditions in turns; return the JSON object of the last line."""
    began, quotas = time.time(), group_parent() is not None
    if not quotas:
        print("No quotas: control groups cannot be made here.", file=sys.stderr)
    wanted = conditions(len(os.sched_getaffinity(0)), quotas)
    found: dict[Condition, list[dict]] = {each: [] for each in [FREE, *wanted]}
    with workers(sorted({each.cores for each in found})) as running:
        for number in range(rounds):
            for condition, taken in found.items():
                print(f"round {number + 1} of {rounds}: {condition}", file=sys.stderr, flush=True)
                taken.append(measure(running[condition.cores], condition, seconds))
    middle = {
        each: {name: median(one[name] for one in taken) for name in taken[0]} for each, taken in found.items()
    }
    yardstick = middle[FREE]["tok_s"]
    rows = [
        {
            "where": each.name,
            "requested_threads": each.threads,
            "allowed": each.allowed,
            **middle[each],
            "reached": middle[each]["tok_s"] / (each.allowed * yardstick),
            "samples": [one["tok_s"] for one in found[each]],
        }
        for each in wanted
    ]
    return {
        "rows": rows,
        "yardstick_tok_s": yardstick,
        "conditions": {
            "shape": SHAPE, "recipe": RECIPE, "seconds": seconds, "rounds": rounds, "period_us": PERIOD
        },
        "environment": environment(),
        "started_at": began,
        "seconds": time.time() - began,
    }  # fmt: skip


def text(result: dict) -> str:
    """Return the table for a terminal."""
    lines: list[tuple[str, ...]] = [
        ("", "threads", "allowed", "used", "tok/s", "p50, ms", "p99, ms", "reached")
    ]
    for row in result["rows"]:
        threads = f"{row['threads']:.0f}" + " (default)" * (row["requested_threads"] is None)
        figures = (row["tok_s"], row["p50_ms"], row["p99_ms"])
        numbers = [f"{row['allowed']:.2f}", f"{row['used']:.2f}", *(f"{each:.1f}" for each in figures)]
        lines.append((row["where"], threads, *numbers, f"{row['reached']:.2f} x"))
    return "\n".join(marks.columns(lines))


def main() -> None:
    """Parse the options, measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of decoding per figure")
    parser.add_argument("--rounds", type=int, default=3, help="figures per condition")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    options = parser.parse_args()
    result = run(options.seconds, options.rounds)
    print(text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

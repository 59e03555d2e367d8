"""The native step when it has less than whole processors: on a core that another process uses, too, and under
a CPU quota.

    python benchmarks/contention.py [--seconds 5] [--rounds 3] [--json FILE]

A random model in the shape of SmolLM2-135M decodes in a process of its own, which the benchmark pins to cores
or puts into a control group with a quota (that needs root, or a delegated group). "Reached" is its speed over
that of one thread on a free core, times the processor time that it may have:

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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from benchmarks import marks  # noqa: E402
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
        words += [f"a quota of {self.quota:g}"] * (self.quota is not None)
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
def group(quota: float | None) -> Iterator[Path | None]:
    """Make a control group with a quota of `quota` cores; yield its folder, None without a quota."""
    parent = group_parent()
    if quota is None or parent is None:
        yield None
        return
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


def measure(condition: Condition, seconds: float) -> dict[str, float]:
    """Return "tok_s", "p50_ms", "p99_ms", "threads" and "used" (cores' worth of time) of one process."""
    pinned = sorted(os.sched_getaffinity(0))[: condition.cores]
    with ExitStack() as stack:
        folder = stack.enter_context(group(condition.quota))

        def enter() -> None:
            os.sched_setaffinity(0, pinned)
            if folder is not None:
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        for core in pinned[: condition.busy]:
            other = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", BUSY])
            stack.callback(other.wait)
            stack.callback(other.kill)
        threads = str(condition.threads or 0)
        command = [sys.executable, "-m", "benchmarks.contention", "--child", threads, str(seconds)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
        done = subprocess.run(
            command, cwd=ROOT, env=clean, preexec_fn=enter, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def child(threads: int, seconds: float) -> dict[str, float]:
    """Decode for `seconds` with `threads` threads (0: the default) and return the figures of `measure`."""
    import torch
    from transformers import LlamaConfig

    from qcore import recipes, runtime
    from qcore.base.quantile import quantile
    from qcore.planning import sample
    from qcore.runtime import Context

    if threads:
        torch.set_num_threads(threads)
    model = sample.build(LlamaConfig(**SHAPE), recipes.parse(RECIPE))
    assert runtime.reason_against(model) is None, "the native step does not run"
    taken: list[float] = []
    with torch.no_grad():
        ids = torch.arange(PROMPT)[None]
        for warm in (True, False):
            context = Context(model)
            context.append(ids)
            until, used = time.perf_counter() + (0.5 if warm else seconds), time.process_time()
            began = time.perf_counter()
            while (before := time.perf_counter()) < until:
                if context.length > 500:  # the context stays short, so that the weights decide
                    context = Context(model)
                context.append(ids[:, :1])
                taken.append(time.perf_counter() - before)
            wall, used = time.perf_counter() - began, time.process_time() - used
            count, ordered = len(taken), sorted(taken)
            taken.clear()
    return {
        "tok_s": count / wall,
        "p50_ms": 1000 * quantile(ordered, 0.5),
        "p99_ms": 1000 * quantile(ordered, 0.99),
        "threads": torch.get_num_threads(),
        "used": used / wall,
    }


def run(seconds: float, rounds: int) -> dict:
    """Measure all conditions in turns; return the JSON object of the last line."""
    began, quotas = time.time(), group_parent() is not None
    if not quotas:
        print("No quotas: control groups cannot be made here.", file=sys.stderr)
    wanted = conditions(len(os.sched_getaffinity(0)), quotas)
    found: dict[Condition, list[dict]] = {each: [] for each in [FREE, *wanted]}
    for number in range(rounds):
        for condition, taken in found.items():
            print(f"round {number + 1} of {rounds}: {condition}", file=sys.stderr, flush=True)
            taken.append(measure(condition, seconds))
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
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(int(sys.argv[2]), float(sys.argv[3]))))
        return
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

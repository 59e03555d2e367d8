"""The first visitor of a fresh deployment, in a control group with little memory and part of a processor.

    python benchmarks/deployment.py                         2.7 GB and one core, as on Streamlit Cloud
    python benchmarks/deployment.py --python VENV/bin/python --memory 2.7 --cores 1

The dashboard starts with an empty cache folder: no model, no compiled kernels. The first visitor waits for
the page Home, presses its button, and follows the run (see `load_tab.py`) until the comparison has ended.
Recorded are the seconds of each step, the highest memory of the whole group, and the rows. Needs root, and
control groups of version 1 or 2 that can be written. `--save` puts the result into `benchmarks/results/` and
docs/deploy.md.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

from benchmarks import load, marks  # noqa: E402
from benchmarks.load_tab import Record, Tab  # noqa: E402
from qcore.base.files import read_json  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402

NAME = "deployment"
GROUPS, PERIOD = Path("/sys/fs/cgroup"), 100_000  # microseconds
BUTTON = "Run the first comparison"
LONGEST = 3600.0  # seconds for the comparison
QUIET = 5.0  # seconds without a fragment that reruns, after which the run has ended
ENTER = 'for group in {groups}; do echo $$ > "$group/cgroup.procs"; done; exec "$@"'


class Group:
    """A control group with limits of memory (bytes) and cores, in version 1 or 2."""

    def __init__(self, memory: int, cores: float):
        name = f"qcore-deployment-{os.getpid()}"
        self._old = (GROUPS / "memory").is_dir()
        self.folders = [GROUPS / "memory" / name, GROUPS / "cpu" / name] if self._old else [GROUPS / name]
        for folder in self.folders:
            folder.mkdir()
        quota = int(cores * PERIOD)
        if self._old:
            (self.folders[0] / "memory.limit_in_bytes").write_text(str(memory))
            (self.folders[1] / "cpu.cfs_period_us").write_text(str(PERIOD))
            (self.folders[1] / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self.folders[0] / "memory.max").write_text(str(memory))
            (self.folders[0] / "cpu.max").write_text(f"{quota} {PERIOD}")

    def used(self) -> int:
        """Return the bytes in use without those that the system can drop at any time (files read before)."""
        folder = self.folders[0]
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used = (folder / ("memory.usage_in_bytes" if self._old else "memory.current")).read_text()
        return int(used) - int(stat["total_inactive_file" if self._old else "inactive_file"])

    def private(self) -> int:
        """Return the bytes that belong to processes alone, files left out."""
        lines = (line.split() for line in (self.folders[0] / "memory.stat").read_text().splitlines())
        return int(dict(lines)["total_rss" if self._old else "anon"])

    def kills(self) -> int:
        """Return how many processes the limit has ended."""
        name = "memory.oom_control" if self._old else "memory.events"
        lines = (line.split() for line in (self.folders[0] / name).read_text().splitlines())
        return int(dict(lines).get("oom_kill", 0))

    def command(self, python: str) -> tuple[str, ...]:
        """Return the words that start `python` inside the group."""
        groups = " ".join(map(str, self.folders))
        return ("/bin/sh", "-c", ENTER.format(groups=groups), "sh", python)

    def remove(self) -> None:
        """Remove the group once its processes are gone."""
        for folder in self.folders:
            for _ in range(50):
                with suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.2)


@contextmanager
def group(memory: int, cores: float) -> Iterator[Group]:
    """Yield a group, and remove it."""
    try:
        made = Group(memory, cores)
    except OSError as error:
        raise SystemExit(f"No control group with limits can be made here: {error}.") from error
    try:
        yield made
    finally:
        made.remove()


async def first_visit(address: str, limits: Group) -> dict:
    """Open Home, start the first comparison and follow it; return seconds, bytes and errors."""
    record, highest, private = Record(), 0, 0
    browser = httpx2.AsyncClient(verify=False)
    async with Tab(address, record, browser) as tab:
        began = time.monotonic()
        await tab.enter()
        shown = time.monotonic()
        button = next((each for each in tab.widgets.values() if each.label == BUTTON), None)
        if button is None:
            raise SystemExit(f"Home has no button {BUTTON!r}: {record.errors}")
        page = limits.used()
        await tab.change(button, 0)
        started = time.monotonic()
        quiet = started
        while time.monotonic() - quiet < QUIET and time.monotonic() - started < LONGEST:
            highest, private = max(highest, limits.used()), max(private, limits.private())
            if tab.follows:
                quiet = time.monotonic()
            await asyncio.sleep(0.2)
        ended = quiet
    await browser.aclose()
    followed = [each.seconds for each in record.reruns if each.kind == "fragment"]
    return {
        "home_s": shown - began,
        "accepted_s": started - shown,
        "comparison_s": ended - started,
        "page_bytes": page,
        "peak_bytes": highest,
        "peak_private_bytes": private,
        "followed": {"count": len(followed), "p95_s": load.percentile(followed, 95)},
        "errors": record.errors,
    }


def rows(home: Path) -> list[dict]:
    """Return the figures of the only run."""
    found = [read_json(path) for path in sorted(home.glob("runs/*/rows/*.json"))]
    kept = (
        "recipe",
        "status",
        "error",
        "stored_bytes",
        "perplexity",
        "decode_tok_s",
        "peak_run_bytes",
        "quantize_s",
    )
    return [
        {name: row.get(name) for name in kept} | {"execution": row["record"].get("execution")}
        for row in found
    ]


def table(result: dict) -> str:
    """Return the section of docs/deploy.md."""
    how, found, where = result["conditions"], result["seconds"], result["environment"]
    times = (
        ("from `streamlit run` to a healthy server", found["healthy_s"]),
        ("the page Home, first visit", found["home_s"]),
        ("the first comparison: model, kernels and three recipes", found["comparison_s"]),
    )
    rates = [f"`{row['recipe']}` {row['decode_tok_s']:.1f}" for row in result["rows"] if row["decode_tok_s"]]
    peak, private = f"{found['peak_bytes'] / 1e6:,.0f} MB", found.get("peak_private_bytes")
    if private is not None:  # earlier results do not tell
        peak += f", of which {private / 1e6:,.0f} MB are not files"
    words = (
        f"Limits: {how['memory_bytes'] / 1e9:.1f} GB and {how['cores']:g} core. Memory of all processes "
        f"together: {found['page_bytes'] / 1e6:.0f} MB once Home is shown, at most {peak}; "
        f"{result['kills']} processes ended by the limit. Decode in tokens per second: {', '.join(rates)}. "
        f"{marks.day(result)}, {where['cpu']}, Python {how['python']}, torch {how['torch']}; "
        f"[{result['file']}](../benchmarks/results/{result['file']})."
    )
    rows = [f"| {name} | {taken:.1f} s |" for name, taken in times]
    return "\n".join(["| step | time |", "| --- | ---: |", *rows, "", words])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environment to try")
    parser.add_argument("--memory", type=float, default=2.7, help="GB")
    parser.add_argument("--cores", type=float, default=1.0)
    parser.add_argument(
        "--save", action="store_true", help="save the result, and write it into docs/deploy.md"
    )
    options = parser.parse_args()
    began = time.time()
    home = Path(tempfile.mkdtemp(prefix="qcore-deployment-"))
    about = "import sys, torch; print(sys.version.split()[0], torch.__version__)"
    done = subprocess.run([options.python, "-c", about], capture_output=True, text=True, check=True)
    python, torch = done.stdout.split()
    try:
        with group(int(options.memory * 1e9), options.cores) as limits:
            start = time.monotonic()
            with load.server(home, True, limits.command(options.python)) as (address, _, log):
                healthy = time.monotonic() - start
                seconds = {"healthy_s": healthy, **asyncio.run(first_visit(address, limits))}
                errors = load.log_errors(log.read_text(errors="replace"))
                kills = limits.kills()
        result = {
            "started_at": began,
            "conditions": {
                "memory_bytes": int(options.memory * 1e9),
                "cores": options.cores,
                "python": python,
                "torch": torch,
            },
            "seconds": seconds,
            "kills": kills,
            "errors": seconds.pop("errors") + errors,
            "rows": rows(home),
            "environment": environment() | {"memory_total": psutil.virtual_memory().total},
        }
    finally:
        shutil.rmtree(home, ignore_errors=True)
    result["file"] = f"{NAME}-{marks.slug(result['environment']['cpu'])}-{marks.day(result)}.json"
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=1))
    if options.save:
        (marks.RESULTS / result["file"]).write_text(json.dumps(result, indent=1) + "\n")
        load.PAGE.write_text(marks.put(load.PAGE.read_text(), NAME, table(result)))
    good = [row for row in result["rows"] if row["status"] == "ok"]
    return 0 if len(good) == 3 and not result["errors"] else 1


if __name__ == "__main__":
    raise SystemExit(main())

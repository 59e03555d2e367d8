"""Many visitors at once: the dashboard under load, through the websocket that browsers use.

    python benchmarks/load.py                            50 visitors for 10 minutes
    python benchmarks/load.py --visitors 5 --minutes 1
    python benchmarks/load.py --home FOLDER              with the models and runs of a cache folder

A server of its own is started as on a host (`streamlit run app.py`, public mode), with an empty cache folder
unless one is given. Each visitor opens a tab, turns pages, changes widgets, and now and then closes the tab
and opens another page in a new one, with some seconds of thought between two actions. Some visitors start a
comparison and follow it. A tab is `load_tab.Tab`: everything but the drawing.

Recorded are the seconds from each request to the end of its answer, errors on pages and in the server's log,
and the server's resident memory. The bars: no error, the 95th percentile of a rerun below 1 second, and
memory after the second minute within 5 % of the peak in the second minute. `--save` saves the result in
`benchmarks/results/` and writes it into docs/deploy.md. Server and visitors share the machine, so the
visitors' own processor time is recorded, too.
"""

import argparse
import asyncio
import json
import os
import random
import re
import socket
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import quantiles
from urllib.error import URLError
from urllib.request import urlopen

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a file, from anywhere

from benchmarks import marks  # noqa: E402
from benchmarks.load_tab import Record, Tab, Widget  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402

NAME, PAGE = "load", marks.ROOT / "docs" / "deploy.md"
SLOWEST, GROWTH, SETTLED = (
    1.0,
    0.05,
    2,
)  # the bars: seconds (p95), share of memory, minutes until it is settled
THOUGHT = (4.0, 16.0)  # seconds between two actions of a visitor, evenly spread
NEW_TAB, TURN = 0.1, 0.5  # shares of actions; the others change a widget
START, FOLLOW = "Start", "Quantize"  # the button and the page that start a comparison
PRESSED = ("Expert", "Simple", "Small", "Fast")  # buttons without heavy work behind them
EVERY = 5.0  # seconds between two samples of memory
STARTING = 60.0  # seconds that the server may take to start


@contextmanager
def server(home: Path, public: bool, command: tuple[str, ...] = (sys.executable,), **variables: str):
    """Run the dashboard with the cache folder `home`; yield its address, its process and its log. `command`
    starts Python, in `variables` beside this process's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, _, port = address.partition(":")
    words = [*command, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
    words += ["--server.address", host, "--server.port", port]
    settings = {**os.environ, "QCORE_HOME": str(home), "QCORE_PUBLIC": str(int(public)), **variables}
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = psutil.Popen(words, cwd=marks.ROOT, env=settings, stdout=log, stderr=log)
        try:
            _wait(address, process, Path(log.name))
            yield address, process, Path(log.name)
        finally:
            family = [process, *process.children(recursive=True)] if process.is_running() else []
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.terminate()
            for each in psutil.wait_procs(family, timeout=10)[1]:
                each.kill()


def _wait(address: str, process: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(URLError, OSError), urlopen(f"http://{address}/_stcore/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"The server did not start:\n{log.read_text()[-2000:]}")


async def visitor(address: str, record: Record, until: float, seed: int, starts: bool) -> None:
    """Use the dashboard until `until`. A visitor that `starts` also starts comparisons and follows them."""
    dice = random.Random(seed)
    path = ""
    await asyncio.sleep(dice.uniform(0, THOUGHT[1]))
    browser = httpx2.AsyncClient(
        verify=False
    )  # loopback has no certificate, and the list of authorities is large
    while time.monotonic() < until:
        async with Tab(address, record, browser) as tab:
            await tab.enter(path)
            if not tab.pages:
                return  # the error is recorded
            while time.monotonic() < until:
                await asyncio.sleep(dice.uniform(*THOUGHT))
                if starts and not tab.follows:
                    await _start(tab)
                    continue
                if starts:
                    continue  # it watches
                chance = dice.random()
                if chance < NEW_TAB:
                    break
                widgets = [
                    each for each in tab.widgets.values() if each.kind != "button" or each.label in PRESSED
                ]
                if chance < NEW_TAB + TURN or not widgets:
                    await tab.turn_to(dice.choice(list(tab.pages)))
                else:
                    await tab.change(dice.choice(widgets), dice.random())
            path = dice.choice([path for _, path in tab.pages.values()])
    await browser.aclose()


def light(widget: Widget) -> bool:
    """Return whether a widget starts nothing but a rerun."""
    return widget.kind != "button" or widget.label in PRESSED


async def _start(tab: Tab) -> None:
    """Start a comparison with the recipes that the page suggests."""
    await tab.turn_to(FOLLOW)
    if button := next((each for each in tab.widgets.values() if each.label == START), None):
        await tab.change(button, 0)


async def watch(process: psutil.Process, until: float, samples: list[dict]) -> None:
    """Append the memory and processor time of the server and its children every few seconds."""
    while time.monotonic() < until and process.is_running():
        children = []
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                children.append(child.memory_info().rss)
        samples.append(
            {
                "at": time.monotonic(),
                "rss_bytes": process.memory_info().rss,
                "children": len(children),
                "children_rss_bytes": sum(children),
                "server_cpu_s": sum(process.cpu_times()[:2]),
                "visitors_cpu_s": time.process_time(),
            }
        )
        await asyncio.sleep(EVERY)


async def run(
    address: str, process: psutil.Process, options: argparse.Namespace
) -> tuple[Record, list[dict]]:
    """Send the visitors for the given minutes; return what they saw, and the samples of memory."""
    record, samples = Record(), []
    until = time.monotonic() + 60 * options.minutes
    watcher = asyncio.create_task(watch(process, until, samples))
    await asyncio.gather(
        *(
            visitor(address, record, until, number, number < options.runs)
            for number in range(options.visitors)
        )
    )
    await watcher
    return record, samples


def summary(record: Record, samples: list[dict], log: str, minutes: float) -> dict:
    """Return the figures, and whether each bar holds."""
    began = samples[0]["at"]
    rows = []
    for minute in range(int(minutes)):
        inside = [each for each in samples if minute <= (each["at"] - began) / 60 < minute + 1]
        seconds = [each.seconds for each in record.reruns if minute <= (each.at - began) / 60 < minute + 1]
        if len(inside) > 1:
            rows.append(
                {
                    "minute": minute + 1,
                    "rss_bytes": max(each["rss_bytes"] for each in inside),
                    "children": max(each["children"] for each in inside),
                    "children_rss_bytes": max(each["children_rss_bytes"] for each in inside),
                    "server_cores": _share(inside, "server_cpu_s"),
                    "visitors_cores": _share(inside, "visitors_cpu_s"),
                    "reruns": len(seconds),
                    "p95_s": percentile(seconds, 95),
                }
            )
    by_kind, by_page = {}, {}
    for each in record.reruns:
        by_kind.setdefault(each.kind, []).append(each.seconds)
        if each.kind != "fragment":
            by_page.setdefault(each.page, []).append(each.seconds)
    reruns = {kind: _times(seconds) for kind, seconds in sorted(by_kind.items())}
    everything = _times([each.seconds for each in record.reruns])
    settled = [row["rss_bytes"] for row in rows if row["minute"] >= SETTLED]
    growth = max(settled) / settled[0] - 1 if len(settled) > 1 else None
    errors = record.errors + [f"in the server's log: {line}" for line in log_errors(log)]
    return {
        "reruns": {"all": everything, **reruns},
        "pages": {page: _times(seconds) for page, seconds in sorted(by_page.items())},
        "errors": {text: errors.count(text) for text in dict.fromkeys(errors)},
        "messages": record.messages,
        "sent_bytes": record.nbytes,
        "minutes": rows,
        "memory_growth": growth,
        "holds": {
            "no error": not errors,
            f"p95 below {SLOWEST:g} s": everything["p95_s"] is not None and everything["p95_s"] < SLOWEST,
            f"memory within {GROWTH:.0%}": None if growth is None else growth <= GROWTH,
        },
    }


def _share(samples: list[dict], name: str) -> float:
    """Return the cores in use between the first sample and the last."""
    first, last = samples[0], samples[-1]
    return (last[name] - first[name]) / (last["at"] - first["at"])


def _times(seconds: list[float]) -> dict:
    return {
        "count": len(seconds),
        **{f"p{share}_s": percentile(seconds, share) for share in (50, 95, 99)},
        "longest_s": max(seconds, default=None),
    }


def percentile(values: list[float], share: int) -> float | None:
    """Return the percentile `share` of `values`; None without values."""
    return (
        quantiles(values, n=100, method="inclusive")[share - 1]
        if len(values) > 1
        else next(iter(values), None)
    )


def log_errors(log: str) -> list[str]:
    """Return the last line of each traceback in a server's log, and the lines that are errors."""
    found, inside = [], False
    for line in log.splitlines():
        if line.startswith("Traceback"):
            inside = True
        elif inside and line and not line.startswith((" ", "\t")):
            found.append(line[:300])
            inside = False
        elif re.match(r"\S+ \S+ ERROR|ERROR", line):
            found.append(line[:300])
    return found


def table(result: dict) -> str:
    """Return the section of docs/deploy.md."""
    how, found, where = result["conditions"], result["summary"], result["environment"]
    lines = [
        "| minute | server's memory | cores: server | visitors | reruns | p95 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['minute']} | {row['rss_bytes'] / 1e6:.0f} MB | {row['server_cores']:.2f} | "
        f"{row['visitors_cores']:.2f} | {row['reruns']:,} | {row['p95_s']:.2f} s |"
        for row in found["minutes"]
    ]
    every, errors, grown = found["reruns"]["all"], sum(found["errors"].values()), found["memory_growth"]
    memory = "" if grown is None else f" memory {grown:+.1%} after minute {SETTLED};"
    goals = ", ".join(f"{name} {'holds' if held else 'MISSED'}" for name, held in found["holds"].items())
    words = (
        f"{how['visitors']} visitors for {how['minutes']:g} minutes, {how['thought_s'][0]:g} to "
        f"{how['thought_s'][1]:g} s of thought between two actions; {how['runs']} of them start and follow "
        f"comparisons: {every['count']:,} reruns, median {every['p50_s']:.2f} s, p95 {every['p95_s']:.2f} s, "
        f"longest {every['longest_s']:.1f} s; {errors} errors;{memory} {how['cores']} cores for server, "
        f"visitors and runs together. {marks.day(result)}, {where['cpu']}; "
        f"[{result['file']}](../benchmarks/results/{result['file']})."
    )
    slow = sorted(found["pages"].items(), key=lambda each: -each[1]["p95_s"])[:3]
    pages = ", ".join(f"{page} {seconds['p50_s']:.2f} s ({seconds['p95_s']:.1f} s)" for page, seconds in slow)
    return "\n".join([*lines, "", words, "", f"Goals: {goals}. The slowest pages, median (p95): {pages}."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=2, help="visitors that start comparisons and follow them")
    parser.add_argument("--home", type=Path, help="a cache folder with models and runs; it is written to")
    parser.add_argument("--private", action="store_true", help="not in public mode: all see the same runs")
    parser.add_argument("--save", action="store_true", help="save the result, and write it into the page")
    options = parser.parse_args()
    began = time.time()
    with (
        tempfile.TemporaryDirectory() as empty,
        server(options.home or Path(empty), not options.private, HF_HUB_OFFLINE="1") as (
            address,
            process,
            log,
        ),
    ):
        record, samples = asyncio.run(run(address, process, options))
        text = log.read_text(errors="replace")
    result = {
        "started_at": began,
        "conditions": {
            "visitors": options.visitors,
            "minutes": options.minutes,
            "runs": options.runs,
            "public": not options.private,
            "home": "given" if options.home else "empty",
            "cores": len(os.sched_getaffinity(0)),
            "thought_s": THOUGHT,
        },
        "summary": summary(record, samples, text, options.minutes),
        "environment": environment(),
    }
    result["file"] = f"load-{marks.slug(result['environment']['cpu'])}-{marks.day(result)}.json"
    print(json.dumps(result["summary"], indent=1))
    if options.save:
        (marks.RESULTS / result["file"]).write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(marks.put(PAGE.read_text(), NAME, table(result)))
    return 0 if all(held is not False for held in result["summary"]["holds"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m benchmarks.dashboard [--root CHECKOUT] [--name NAME]`: what the dashboard's server costs.

    first paint     from a click in the menu until the title of the page stands, and until its script has
                    ended, with 1,000 runs in the history; the mean of two visits
    memory          resident bytes of the server after every page was visited, and of its worker process
    idle            processor time of the server while one tab is open and nothing runs
    followers       the same while one tab, and ten tabs, follow a run

Shares are of one core. The server runs from `--root` (default: this checkout), so the same script measures an
older commit. The followed run is a process that writes its status as a worker does, and computes nothing. The
result is written to benchmarks/results/dashboard-NAME.json, beside the measurements that are there already.
"""

import argparse
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil
from playwright.sync_api import BrowserContext, Page, sync_playwright

from benchmarks.marks import RESULTS, ROOT
from qcore.base.home import home
from qcore.results.store import Store

PAGES = {
    "home": "Home",
    "plan": "Plan",
    "quantize": "Quantize",
    "compare": "Compare",
    "playground": "Playground",
    "layers": "Layers",
    "audit": "Audit",
    "sensitivity": "Sensitivity",
    "train": "Train & prune",
    "export": "Export",
    "learn": "Learn",
}
BARS = {
    "memory_bytes": 250e6,
    "idle": 0.005,
    "one_follower": 0.03,
    "ten_followers": 0.15,
    "first_paint_s": 0.7,
}
RUNS, VISITS, TABS, SECONDS = 1000, 2, 10, 20.0
PAUSE = 1.5  # seconds in which the browser draws the charts of a page, before it is left
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
OWN = home()  # the cache folder with the default model and compiled kernels
KERNELS = os.environ.get("QCORE_KERNELS", str(OWN / "kernels"))
COLUMNS = {"runs": "created_at, state, status", "rows": "position, model, recipe, status, row"}
PATIENCE = 300_000  # milliseconds; the first visit may compile kernels
RECIPES = ("fp32", "int8", "int4-g64")
DONE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--name", default=time.strftime("%Y-%m-%d"))
    parser.add_argument("--label", default="after")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qcore-dashboard-") as folder:
        history(Path(folder) / "home")
        found = measure(arguments.root.resolve(), Path(folder) / "home")
    path = RESULTS / f"dashboard-{arguments.name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"bars": BARS, "runs": RUNS}
    path.write_text(json.dumps(kept | {arguments.label: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measure(root: Path, folder: Path) -> dict:
    """Return all figures of the server that runs from `root`."""
    with server(root, folder) as (address, process), chromium() as context:
        page = context.pages[0]
        paints = first_paints(page, address)
        found = {
            "commit": commit(root),
            "cpu": cpu(),
            "first_paint_s": {name: title for name, (title, _) in paints.items()},
            "whole_page_s": {name: whole for name, (_, whole) in paints.items()},
            "memory_bytes": process.memory_info().rss,
            "worker_bytes": sum(child.memory_info().rss for child in process.children()),
        }
        page.goto(address)
        settle(page)
        time.sleep(3)
        found["idle"] = share(process)
        with following(folder) as run_id:
            page.goto(f"{address}/quantize?run={run_id}")
            settle(page)
            time.sleep(3)
            found["one_follower"] = share(process)
            for _ in range(TABS - 1):
                tab = context.new_page()
                tab.goto(f"{address}/quantize?run={run_id}")
                settle(tab)
            time.sleep(3)
            found["ten_followers"] = share(process)
            found["memory_bytes_at_the_end"] = process.memory_info().rss
    worst = max(found["first_paint_s"].values())
    found["met"] = {
        name: (worst if name == "first_paint_s" else found[name]) <= bar for name, bar in BARS.items()
    }
    return found


def first_paints(page: Page, address: str) -> dict[str, tuple[float, float]]:
    """Return for each page the seconds until its title and until its end, once the server has drawn all."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PAGES}
    page.goto(address)
    settle(page)
    time.sleep(2)
    for visit in range(VISITS + 1):
        for name, title in reversed(PAGES.items()):
            began = time.perf_counter()
            page.locator('[data-testid="stSidebarNav"] a', has_text=title).first.click()
            heading = "qcore" if name == "home" else title
            page.wait_for_selector(f'h1:has-text("{heading}")')
            titled = time.perf_counter() - began
            settle(page)
            if visit:
                times[name].append((titled, time.perf_counter() - began))
            time.sleep(PAUSE)
    medians = {name: tuple(map(statistics.median, zip(*found, strict=True))) for name, found in times.items()}
    return {name: (round(title, 3), round(whole, 3)) for name, (title, whole) in medians.items()}


def share(process: psutil.Process) -> float:
    """Return the processor time that the server takes in a while, as a share of one core."""
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(SECONDS)
    return round((sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began), 4)


@contextmanager
def server(root: Path, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the dashboard from `root` with the cache folder `folder`; yield its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
    command += ["--server.port", str(port), "--server.address", "127.0.0.1"]
    variables = {"QCORE_HOME": str(folder), "QCORE_KERNELS": KERNELS, "PYTHONPATH": str(root)}
    variables |= {"HF_HUB_OFFLINE": "1", "QCORE_PUBLIC": "0"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=root, env={**os.environ, **variables}, stdout=log, stderr=log)
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while True:
                try:
                    urlopen(f"{address}/_stcore/health", timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise RuntimeError(log.read().decode(errors="replace")[-2000:]) from None
                    time.sleep(0.2)
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def chromium() -> Iterator[BrowserContext]:
    """Yield a browser with a fresh profile."""
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    # a tab in the background follows a run as one in front does
    options += ["--disable-background-timer-throttling", "--disable-renderer-backgrounding"]
    options += ["--disable-backgrounding-occluded-windows"]
    with tempfile.TemporaryDirectory(prefix="qcore-chromium-") as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=options, viewport={"width": 1366, "height": 768}
        )
        context.set_default_timeout(PATIENCE)
        try:
            yield context
        finally:
            context.close()


def settle(page: Page) -> None:
    """Wait until the page's script has ended. Raise `RuntimeError` if it shows an exception."""
    page.wait_for_selector("h1")
    page.wait_for_selector(DONE)
    if page.locator('[data-testid="stException"]').count():
        raise RuntimeError(page.locator('[data-testid="stException"]').first.inner_text())


# -- a cache folder -----------------------------------------------------------------------------------------


def history(folder: Path) -> None:
    """Write a cache folder with `RUNS` finished runs, and the default model if it is on this machine."""
    sys.path.insert(0, str(ROOT / "tests"))
    import samples

    model = OWN / "models" / "smollm2-135m"
    if model.is_dir():
        (folder / "models").mkdir(parents=True)
        (folder / "models" / model.name).symlink_to(model.resolve())
    first = samples.write_run(folder, [samples.row(name) for name in RECIPES])
    os.environ["QCORE_HOME"] = str(folder)
    Store().rebuild()
    source = folder / "runs" / first
    texts = {path.relative_to(source): path.read_text() for path in source.rglob("*.json")}
    for number in range(1, RUNS):
        run_id = f"2025{3 + number // 500:02d}{1 + number // 24 % 27:02d}-{number % 24:02d}0000-{number:06x}"
        run = folder / "runs" / run_id
        (run / "rows").mkdir(parents=True)
        for name, text in texts.items():
            (run / name).write_text(text.replace(first, run_id))
        (run / "log.txt").write_text("a line of the log\n" * 200)
    with closing(sqlite3.connect(folder / "qcore.db")) as database, database:
        for run in sorted((folder / "runs").iterdir()):
            for table, columns in COLUMNS.items():
                sentence = f"INSERT OR IGNORE INTO {table} SELECT ?, {columns} FROM {table} WHERE run_id = ?"
                database.execute(sentence, (run.name, first))


@contextmanager
def following(folder: Path) -> Iterator[str]:
    """Yield the id of a run whose process reports its progress twice per second, and computes nothing."""
    run_id = time.strftime("%Y%m%d-%H%M%S-0b0b0b", time.gmtime())
    run = folder / "runs" / run_id
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.dashboard", "--pretend", str(run)], cwd=ROOT
    ) as worker:
        while not (run / "process.json").exists():
            time.sleep(0.05)
        yield run_id
        worker.kill()


def pretend(folder: Path) -> None:
    """Write the files of a run in progress until this process is killed."""
    from qcore.base.files import write_json
    from qcore.base.process import identity
    from qcore.recipes.spec import RunSpec

    now, spec = time.time(), RunSpec("smollm2-135m", RECIPES).to_dict()
    recipes = [{"recipe": name, "state": "waiting", "phase": ""} for name in RECIPES]
    status = {
        "run_id": folder.name,
        "kind": "compare",
        "state": "running",
        "created_at": now,
        "started_at": now,
    }
    step = 0
    while True:
        step += 1
        recipes[0] |= {"state": "running", "phase": f"scoring, {step} of 9999 windows"}
        status |= {"phase": f"fp32: scoring, {step} of 9999 windows", "done": step, "total": 9999}
        status |= {"recipes": recipes, "fraction": min(0.9, step / 9999), "eta_s": 600.0}
        write_json(folder / "status.json", status)
        if step == 1:
            write_json(folder / "spec.json", spec)
            (folder / "log.txt").write_text("a line of the log\n" * 200)
            write_json(folder / "process.json", identity(os.getpid()))
        time.sleep(0.5)


def commit(root: Path) -> str:
    """Return the commit that is checked out in `root`."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def cpu() -> str:
    """Return the processor's name and how many cores this process may use."""
    from qcore.base.cpu import cpu_name

    return f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pretend"]:
        pretend(Path(sys.argv[2]))
    else:
        main()

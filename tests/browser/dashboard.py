"""The dashboard and a browser for tests and screenshots: a server with its own cache folder, and Chromium."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
]
LAPTOP, DESKTOP = (1366, 768), (1920, 1080)
PATIENCE = 60.0  # seconds for a page to be drawn on a busy machine


@contextmanager
def server(home: Path, **environment: str) -> Iterator[str]:
    """Run the dashboard with `home` as its cache folder. Yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        "app.py",
        "--server.headless",
        "true",
        "--server.port",
        str(port),
        "--server.address",
        "127.0.0.1",
        "--server.fileWatcherType",
        "none",
    ]
    variables = {**os.environ, "QCORE_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)
        try:
            _wait_for_server(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_server(address: str, process: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{address}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            pass
        if process.poll() is not None:
            break
        time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"The server did not start:\n{log.read().decode('utf-8', 'replace')[-2000:]}")


@contextmanager
def browser(size: tuple[int, int] = LAPTOP, scheme: str = "light") -> Iterator[Page]:
    """Yield a page of Chromium with a fresh profile. `scheme`: the system's color scheme, "light" or
    "dark"."""
    with tempfile.TemporaryDirectory(prefix="qcore-chromium-") as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            color_scheme=scheme,
            viewport={"width": size[0], "height": size[1]},
        )
        context.set_default_timeout(PATIENCE * 1000)
        try:
            yield context.pages[0] if context.pages else context.new_page()
        finally:
            context.close()


def settle(page: Page, extra: float = 1.5) -> None:
    """Wait until the page's script has ended and its charts are drawn. Fail if the page shows an
    exception."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_timeout(int(extra * 1000))
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    assert page.locator('[data-testid="stException"]').count() == 0, page.locator(
        '[data-testid="stException"]'
    ).first.inner_text()


def visit(page: Page, address: str, extra: float = 1.5) -> None:
    """Open a page of the dashboard and wait for it."""
    page.goto(address)
    page.wait_for_selector("h1")
    settle(page, extra)

"""Memory of the dashboard on a small server while a newcomer compares the default model and generates
text."""

import os
import threading
from pathlib import Path

import dashboard
import psutil
import pytest
from playwright.sync_api import expect

from qcore.base.home import home as cache

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.alone]
LIMIT = 2.7e9  # bytes of memory of a free Streamlit Cloud app
RUN = 900_000  # milliseconds


@pytest.fixture
def home(tmp_path):
    """A cache folder with the prepared default model."""
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "home" / "models" / "smollm2-135m").symlink_to(
        (cache() / "models" / "smollm2-135m").resolve()
    )
    return tmp_path / "home"


class Meter:
    """Measure, inside `with`, the peak sum of the proportional set sizes of all processes with the cache
    folder `home`, and the share of each process. Shared pages count once."""

    def __init__(self, home: Path):
        self._home, self._end = f"QCORE_HOME={home}".encode(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most, self.parts, self.looks = 0, {}, 0

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.2):
            parts = {}
            for process in psutil.process_iter(["pid"]):
                try:
                    if self._home in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                        name = " ".join(process.cmdline()[1:4])
                        parts[f"{process.pid} {name}"] = process.memory_full_info().pss
                except (psutil.Error, OSError):
                    continue  # the process has ended
            self.looks += 1
            if sum(parts.values()) > self.most:
                self.most, self.parts = sum(parts.values()), parts


def test_the_default_models_journey_fits_on_a_small_server(page, home, capsys):
    """Home, a comparison of three recipes, its plots, the layers, and a text with all three recipes."""
    os.environ.pop("QCORE_MEMORY_LIMIT", None)
    with Meter(home) as meter, dashboard.server(home) as address:
        dashboard.visit(page, address)
        dashboard.visit(page, f"{address}/quantize")
        tokens = page.get_by_role("spinbutton", name="Tokens scored")
        tokens.fill("1024")
        tokens.press("Enter")
        dashboard.settle(page)
        page.get_by_role("button", name="Start", exact=True).click()
        page.wait_for_url("**/quantize?run=*")
        expect(page.get_by_text("Finished in")).to_be_visible(timeout=RUN)
        page.get_by_role("link", name="See the comparison").click()
        page.wait_for_url("**/compare?run=*")
        dashboard.settle(page, 3)
        dashboard.visit(page, f"{address}/layers")
        page.get_by_role("button", name="Measure the layers").click()
        expect(page.get_by_role("heading", name="Error of each layer")).to_be_visible(timeout=RUN)
        dashboard.visit(page, f"{address}/playground")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_text("64 tokens, length limit reached")).to_have_count(3, timeout=RUN)
    with capsys.disabled():
        print(
            f"\nThe default model's journey took {meter.most / 1e9:.2f} GB at most, of {LIMIT / 1e9:.1f} GB:"
        )
        for name, size in sorted(meter.parts.items(), key=lambda part: -part[1]):
            print(f"  {size / 1e9:5.2f} GB  {name}")
    assert meter.looks > 50 and 0.5e9 < meter.most < LIMIT, meter.parts

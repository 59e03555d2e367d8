"""Take screenshots of all pages for the documentation: `python tests/browser/screenshots.py HOME [NAME …]`
writes docs/screenshots/*.png.

HOME is a cache folder with the default model and finished runs of it (the newest one is shown). Each page is
taken empty (with a cache folder that holds nothing) and full, light and dark, at a laptop's width; the
comparison also at a desktop's width. With names ("compare", "home-empty", …) only pictures whose name
contains one of them are taken; "quantize-running" is taken only if it is named.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import dashboard
from PIL import Image
from playwright.sync_api import Page

OUT = dashboard.ROOT / "docs" / "screenshots"
PAGES = (
    "home",
    "plan",
    "quantize",
    "compare",
    "playground",
    "layers",
    "audit",
    "sensitivity",
    "train",
    "export",
    "learn",
)
TALLEST = 6000
RUN = 600_000


def main(home: Path, wanted: list[str]) -> None:
    """Take the pictures whose name contains one of `wanted`, or all pictures if `wanted` is empty."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as nothing:
        for scheme in ("light", "dark"):
            for folder, suffix, actions in ((Path(nothing), "empty", {}), (home, "full", FULL)):
                names = [name for name in PAGES if chosen(f"{name}-{suffix}-{scheme}", wanted)]
                if not names:
                    continue
                with dashboard.server(folder) as address, dashboard.browser(dashboard.LAPTOP, scheme) as page:
                    for name in names:
                        dashboard.visit(page, f"{address}/{'' if name == 'home' else name}", 2.5)
                        actions.get(name, lambda page: None)(page)
                        save(page, f"{name}-{suffix}-{scheme}", dashboard.LAPTOP)
    if "quantize-running" in wanted:  # only if named: HOME must have a run in progress
        with dashboard.server(home) as address, dashboard.browser(dashboard.LAPTOP, "light") as page:
            dashboard.visit(page, f"{address}/quantize", 2.5)
            page.get_by_test_id("stSidebar").get_by_role("link", name="smollm2").click()
            page.get_by_role("button", name="Cancel").wait_for()
            dashboard.settle(page, 2.5)
            page.screenshot(path=OUT / "quantize-running.png")
            shrink(OUT / "quantize-running.png")
    if chosen("compare-full-1920", wanted):
        with dashboard.server(home) as address, dashboard.browser(dashboard.DESKTOP, "light") as page:
            dashboard.visit(page, f"{address}/compare", 2.5)
            save(page, "compare-full-1920", dashboard.DESKTOP)


def chosen(name: str, wanted: list[str]) -> bool:
    return not wanted or any(part in name for part in wanted)


def show_run(page: Page) -> None:
    """Open the panel of the newest comparison."""
    newest = max(rows.parent.name for rows in (Path(sys.argv[1]) / "runs").glob("*/rows"))
    dashboard.visit(page, f"{page.url}?run={newest}", 2.5)


def write(page: Page) -> None:
    """Generate a text with each of the three recipes."""
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.body.innerText.split('tok/s').length >= 4", timeout=RUN)
    dashboard.settle(page, 2.5)


def measure(page: Page) -> None:
    """Measure the errors of all layers, unless an earlier visit measured them."""
    if page.get_by_role("button", name="Measure the layers").count():
        page.get_by_role("button", name="Measure the layers").click()
    page.get_by_role("heading", name="Error of each layer").wait_for(timeout=RUN)
    dashboard.settle(page, 2.5)


def probe(page: Page) -> None:
    """Probe the speed of all recipes, unless an earlier visit timed them."""
    button = page.get_by_role("button", name="Probe the speed")
    if button.count():
        button.click()
        page.get_by_role("button", name="Cancel").wait_for()
        page.get_by_role("button", name="Cancel").wait_for(state="detached", timeout=RUN)
        dashboard.settle(page, 2.5)


def audited(page: Page) -> None:
    """Audit the default model."""
    page.get_by_test_id("stMain").get_by_role("button", name="Audit", exact=True).click()
    page.get_by_role("heading", name="What is in the file").wait_for(timeout=RUN)
    dashboard.settle(page, 2.5)


FULL: dict[str, Callable[[Page], None]] = {
    "plan": probe,
    "quantize": show_run,
    "playground": write,
    "layers": measure,
    "audit": audited,
}


def save(page: Page, name: str, size: tuple[int, int]) -> None:
    """Save a picture of the whole page."""
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": size[0], "height": max(size[1], min(height, TALLEST))})
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)
    path = OUT / f"{name}.png"
    page.screenshot(path=path)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    shrink(path)


def shrink(path: Path) -> None:
    """Reduce the picture to 256 colors, without visible difference, for a small file."""
    Image.open(path).convert("RGB").quantize(
        256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE
    ).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])

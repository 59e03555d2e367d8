"""Journeys in Chromium: a GGUF file is made, proven and downloaded."""

import dashboard
import gguf
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
expect.set_options(timeout=dashboard.PATIENCE * 1000)
RUN = 240_000  # milliseconds


def test_a_gguf_is_made_proven_and_downloaded(page, address, tmp_path):
    dashboard.visit(page, f"{address}/export")
    field = page.get_by_role("textbox", name="Or another recipe")
    field.fill("gguf-q4_0")
    field.press("Enter")
    dashboard.settle(page)
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.get_by_text("bits per weight, in")).to_be_visible(timeout=RUN)
    with page.expect_download(timeout=RUN) as waiting:
        page.get_by_role("button", name="Download").click()
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert "Q4_0" in types
    page.get_by_role("button", name="Measure it beside the original").click()
    page.wait_for_url("**/quantize")
    dashboard.settle(page)
    page.get_by_text("Advanced", exact=True).click()
    expect(page.get_by_role("textbox", name="More recipes")).to_have_value(f"file:{_made(page, file.name)}")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_text("Finished in")).to_be_visible(timeout=RUN)
    page.get_by_role("link", name="See the comparison").click()
    page.wait_for_url("**/compare?run=*")
    dashboard.settle(page, 3)
    expect(page.get_by_text("Verdicts", exact=True)).to_be_visible()


def _made(page, name: str) -> str:
    """Return the path in the field, which must end with the file's name."""
    value = page.get_by_role("textbox", name="More recipes").input_value().removeprefix("file:")
    assert value.endswith(name)
    return value

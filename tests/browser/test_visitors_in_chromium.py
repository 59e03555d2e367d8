"""Two browsers on a public server: each sees its own runs after a reload, and nothing of the other."""

import hashlib

import dashboard
import pytest
import samples
from playwright.sync_api import expect

from ui.visitor import COOKIE

pytestmark = [pytest.mark.browser, pytest.mark.row("F4", "F5")]
expect.set_options(timeout=dashboard.PATIENCE * 1000)
MODEL = "owner/hidden-model"


def test_a_reload_keeps_the_visitor_and_another_browser_is_another(home, page):
    refused = []
    page.on("console", lambda message: refused.append(message.text) if "Content" in message.text else None)
    with dashboard.server(home, QCORE_PUBLIC="1") as address:
        dashboard.visit(page, address)
        (cookie,) = [each for each in page.context.cookies() if each["name"] == COOKIE]
        assert cookie["httpOnly"] and cookie["sameSite"] == "Lax"
        assert COOKIE not in page.evaluate("document.cookie")
        rows = [samples.row(name) for name in ("fp32", "int8", "int4-g64")]
        owner = hashlib.sha256(cookie["value"].encode()).hexdigest()[:32]
        run = samples.write_run(home, rows, model=MODEL, owner=owner)
        pages = ("", f"compare?run={run}", f"quantize?run={run}", "plan", "learn", "privacy")
        for name in pages:
            dashboard.visit(page, f"{address}/{name}")
            assert str(home) not in page.content()
        dashboard.visit(page, f"{address}/compare")
        expect(page.get_by_text("hidden-model").first).to_be_visible()
        assert page.locator(".js-plotly-plot").count() >= 4  # drawn under the policy of the response
        page.context.clear_cookies()  # as another browser has none
        for name in pages:
            dashboard.visit(page, f"{address}/{name}")
            assert "hidden-model" not in page.content()
        expect(page.get_by_role("heading", name="What this server keeps")).to_be_visible()
        (other,) = [each for each in page.context.cookies() if each["name"] == COOKIE]
        assert other["value"] != cookie["value"]
    assert not refused

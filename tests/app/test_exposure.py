"""A server that other machines can reach is public unless QCORE_PUBLIC=0 is set."""

import asyncio
import os
import threading
import webbrowser

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from qcore.base.home import is_public
from ui import exposure
from ui.exposure import is_loopback, settle


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])
def test_loopback_addresses(address):
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", [None, "", "0.0.0.0", "::", "192.168.0.7", "example.org", "localhost.evil.org"]
)
def test_everything_else_can_be_reached(address):
    assert not is_loopback(address)


@pytest.fixture
def unset(monkeypatch):
    """Unset QCORE_PUBLIC, and restore it after the test."""
    monkeypatch.setenv("QCORE_PUBLIC", "0")
    monkeypatch.delenv("QCORE_PUBLIC")
    yield
    os.environ.pop("QCORE_PUBLIC", None)


@pytest.mark.parametrize(("address", "public"), [("127.0.0.1", False), (None, True), ("0.0.0.0", True)])
def test_the_address_decides(unset, monkeypatch, address, public):
    monkeypatch.setattr(streamlit, "get_option", {"server.address": address}.get)
    settle()
    assert is_public() is public


def test_the_owner_has_the_last_word(monkeypatch):
    monkeypatch.setattr(streamlit, "get_option", {"server.address": "0.0.0.0"}.get)
    monkeypatch.setenv("QCORE_PUBLIC", "0")
    settle()
    assert not is_public()


def test_the_app_is_public_before_its_first_page_is_drawn(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path))
    streamlit.cache_resource.clear()
    AppTest.from_file("../../app.py", default_timeout=60).run()
    assert is_public()


@pytest.mark.parametrize(
    ("public", "headless", "opens"), [("0", False, True), ("0", True, False), ("1", False, False)]
)
def test_a_private_server_opens_the_browser(monkeypatch, public, headless, opens):
    monkeypatch.setenv("QCORE_PUBLIC", public)
    monkeypatch.setattr(streamlit, "get_option", {"server.headless": headless, "server.port": 8502}.get)
    shown = threading.Event()
    monkeypatch.setattr(
        webbrowser, "open", lambda address: address == "http://localhost:8502" and shown.set()
    )
    monkeypatch.setattr(exposure, "OPEN_SECONDS", 0.0)

    async def start():
        async with exposure.opened(None):
            pass

    asyncio.run(start())
    assert shown.wait(5 if opens else 0.1) is opens

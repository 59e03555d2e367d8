"""A server that other machines can reach is public unless QCORE_PUBLIC=0 is set."""

import os

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from qcore.base.home import is_public
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

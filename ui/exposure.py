"""Whether strangers can reach this server. If they can, it runs in public mode; see
`qcore.base.home.is_public`."""

import ipaddress
import logging
import os
import threading
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import streamlit as st

from qcore.base.home import is_public
from qcore.base.limits import limits

PUBLIC = "QCORE_PUBLIC"
OPEN_SECONDS = 1.0  # from the start of the server to the browser
log = logging.getLogger("qcore.dashboard")


def settle() -> None:
    """Set QCORE_PUBLIC, unless it is set, by the address that the server is bound to. Jobs inherit it.

    Anything but a loopback address counts as public, and so does no address at all: Streamlit then listens on
    all interfaces. Raise `InputError` if the limits of a public server cannot be read.
    """
    if not os.environ.get(PUBLIC, "").strip():
        private = is_loopback(st.get_option("server.address"))
        os.environ[PUBLIC] = "0" if private else "1"
        if not private:
            log.warning(
                "Other machines can reach this server, so it runs in public mode: no local folders, capped "
                "sizes, and visitors see their own runs only. Start it with --server.address localhost, or "
                "set QCORE_PUBLIC=0, to allow everything."
            )
    limits()


@asynccontextmanager
async def opened(app: st.App) -> AsyncIterator[None]:
    """Open the dashboard in the user's browser after the start, unless the server is public or headless."""
    if not is_public() and not st.get_option("server.headless"):
        address = f"http://localhost:{st.get_option('server.port')}"
        threading.Timer(OPEN_SECONDS, webbrowser.open, [address]).start()
    yield


def is_loopback(address: str | None) -> bool:
    """Return whether a server bound to `address` can be reached from this machine only."""
    if not address:
        return False
    if address == "localhost":
        return True
    try:
        found = ipaddress.ip_address(address.strip("[]"))
        return (getattr(found, "ipv4_mapped", None) or found).is_loopback
    except ValueError:
        return False

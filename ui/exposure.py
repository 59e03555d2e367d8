"""Whether strangers can reach this server. If they can, it runs in public mode; see
`qcore.base.home.is_public`."""

import ipaddress
import logging
import os

import streamlit as st

log = logging.getLogger("qcore.dashboard")


def settle() -> None:
    """Set QCORE_PUBLIC, unless it is set, by the address that the server is bound to. Jobs inherit it.

    Anything but a loopback address counts as public, and so does no address at all: Streamlit then listens on
    all interfaces.
    """
    if "QCORE_PUBLIC" in os.environ:
        return
    public = not is_loopback(st.get_option("server.address"))
    os.environ["QCORE_PUBLIC"] = "1" if public else "0"
    if public:
        log.warning(
            "Other machines can reach this server, so it runs in public mode: no local folders, capped "
            "sizes. Start it with --server.address localhost, or set QCORE_PUBLIC=0, to allow everything."
        )


def is_loopback(address: str | None) -> bool:
    """Return whether a server bound to `address` can be reached from this machine only."""
    if not address:
        return False
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False

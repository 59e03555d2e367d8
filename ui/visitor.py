"""Who looks at a page of a public server: an opaque word per browser. See docs/decisions/0017-visitors.md.

The browser keeps a random secret in a cookie that no script can read (`ui/gate.py` sets it). Its SHA-256 is
the visitor, and the only part that is stored. Without the cookie, a secret in the session's memory takes its
place: a visitor then loses the runs with the tab, and nobody else gains them.
"""

import hashlib
import re
import secrets

import streamlit as st

from qcore.base.home import is_public

COOKIE = "qcore_visitor"
DAYS = 30
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
KEPT = "visitor.secret"


def new_secret() -> str:
    """Return a random secret of 256 bits."""
    return secrets.token_urlsafe(32)


def is_secret(text: object) -> bool:
    """Return whether `text` has the form of a secret."""
    return isinstance(text, str) and _SECRET.fullmatch(text) is not None


def visitor() -> str | None:
    """Return the visitor of this session, None on a private server, where everybody may see everything."""
    if not is_public():
        return None
    secret = st.context.cookies.get(COOKIE, "")
    if not is_secret(secret):
        secret = st.session_state.setdefault(KEPT, new_secret())
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


def returns() -> bool:
    """Return whether the visitor is recognized after the tab was closed."""
    return is_secret(st.context.cookies.get(COOKIE, ""))

"""What stands before every request to the dashboard, as ASGI middleware: response headers, the visitor's
cookie, and limits that must hold before Streamlit reads anything.

A private server (bound to this machine, without QCORE_PUBLIC) answers this machine only, and under loopback
names only. That keeps out web pages that resolve their own name to 127.0.0.1, and strangers who come through
a proxy that was put before it. A public server closes the metrics, and bounds connections and uploads.
"""

import os
import re
from collections import Counter
from http.cookies import CookieError, SimpleCookie

from google.protobuf.message import DecodeError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import runtime
from streamlit.proto.BackMsg_pb2 import BackMsg

from qcore.base.home import is_public
from qcore.jobs import public
from ui.exposure import PUBLIC, is_loopback
from ui.visitor import COOKIE, DAYS, is_secret, new_secret

CONNECTIONS = 100  # open web sockets; each may hold a message of `server.maxMessageSize`
FRAME = 100_000  # bytes around the file in a request
UPLOAD = public.UPLOAD + FRAME
SESSION_UPLOADS, ALL_UPLOADS = 4 * UPLOAD, 40 * UPLOAD  # bytes that Streamlit holds, per session and together
MESSAGES = ("rerun_script", "stop_script", "app_heartbeat", "file_urls_request", "backend_operation_request")
FILES = 100  # addresses that a message asks for; Streamlit makes them while all others wait
CLOSED = ("/_stcore/metrics", "/_stcore/agent", "/_stcore/script-health-check")
HEADERS = {
    # Streamlit's page has an inline script and inline styles; Plotly draws with data: images
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
FOREIGN = (
    "This dashboard answers on this machine only. To serve it under another name, start it with "
    "QCORE_PUBLIC=1, or with QCORE_PUBLIC=0 if everybody who can reach it may read the files of its user.\n"
)
_UPLOAD_PATH = re.compile(r"/_stcore/upload_file/([^/]+)/")


class Gate:
    """The middleware. `declared`: whether the environment, and not the address, decided about public mode."""

    def __init__(self, app: ASGIApp, declared: bool = False):
        self.app, self.declared = app, declared
        self._open = 0
        self._uploads: Counter[str] = Counter()  # bytes by session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refused request, and pass on any other."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal is not None:
                return await send({"type": "websocket.close", "code": 1008, "reason": refusal[1][:100]})
            self._open += 1
            try:
                return await self.app(scope, _of_this_session(receive) if is_public() else receive, send)
            finally:
                self._open -= 1

        cookie = None if has_cookie(headers) or not is_public() else new_cookie(scope, headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    added[name] = value
                if cookie is not None and added.get("Content-Type", "").startswith("text/html"):
                    # Files are kept by proxies, which would give one visitor's cookie to all others.
                    added["Cache-Control"] = "no-store"
                    added.append("Set-Cookie", cookie)
            await send(message)

        if refusal is not None:
            return await PlainTextResponse(refusal[1], refusal[0])(scope, receive, answer)
        await self.app(scope, receive, answer)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Return (status, sentence) for a request that must not reach Streamlit."""
        if not is_public():
            near = is_loopback((scope.get("client") or ("",))[0])
            name = re.sub(r":\d+$", "", headers.get("host", ""))
            return None if self.declared or (near and is_loopback(name)) else (403, FOREIGN)
        if scope["type"] == "websocket":
            full = self._open >= CONNECTIONS
            return (503, "Too many visitors are here right now. Try again later.\n") if full else None
        path = scope["path"]
        if any(name in path for name in CLOSED):
            return 404, "Not found.\n"
        if (found := _UPLOAD_PATH.search(path)) and scope["method"] == "PUT":
            return self._upload(found[1], headers)
        if scope["method"] not in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
            return 405, "Not allowed.\n"
        return None

    def _upload(self, session: str, headers: Headers) -> tuple[int, str] | None:
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "An upload must state its length.\n"
        if int(length) > UPLOAD:
            return 413, "Uploads are limited to 5 MB on this server.\n"
        server = runtime.get_instance()
        for known in [each for each in self._uploads if not server.is_active_session(each)]:
            del self._uploads[known]
        if not server.is_active_session(session):
            return 400, "There is no such session.\n"
        total = sum(self._uploads.values())
        if self._uploads[session] + int(length) > SESSION_UPLOADS or total + int(length) > ALL_UPLOADS:
            return 429, "Too many uploads. Reload the page, and try again later.\n"
        self._uploads[session] += int(length)
        return None


def _of_this_session(receive: Receive) -> Receive:
    """Return `receive` of a web socket without the messages that reach beyond the sender's session. One of
    Streamlit's clears the caches of all sessions, and so ends the worker process that all visitors share;
    another one may ask for a million addresses of uploads."""

    async def received() -> Message:
        while True:
            message = await receive()
            if message["type"] != "websocket.receive" or _is_harmless(message.get("bytes") or b""):
                return message

    return received


def _is_harmless(data: bytes) -> bool:
    try:
        message = BackMsg.FromString(data)
    except DecodeError:
        return True  # Streamlit closes the connection
    return message.WhichOneof("type") in MESSAGES and len(message.file_urls_request.file_names) <= FILES


def has_cookie(headers: Headers) -> bool:
    """Return whether the request bears a visitor's secret."""
    found: SimpleCookie = SimpleCookie()
    try:
        found.load(headers.get("cookie", ""))
    except CookieError:
        return False
    return COOKIE in found and is_secret(found[COOKIE].value)


def new_cookie(scope: Scope, headers: Headers) -> str:
    """Return the header that sets a new visitor's cookie: out of reach of scripts, not sent with requests
    that other sites make, and only over TLS if this request came that way."""
    secure = "https" in (scope.get("scheme"), headers.get("x-forwarded-proto", "").partition(",")[0].strip())
    parts = [f"{COOKIE}={new_secret()}", f"Max-Age={DAYS * 86400}", "Path=/", "HttpOnly", "SameSite=Lax"]
    return "; ".join([*parts, *["Secure"] * secure])


def declared() -> bool:
    """Return whether the environment decides about public mode. Call before `ui.exposure.settle`."""
    return bool(os.environ.get(PUBLIC, "").strip())

"""What stands before the dashboard: headers, the visitor's cookie, host names, uploads, connections."""

import asyncio
from http.cookies import SimpleCookie
from types import SimpleNamespace

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg

from ui import gate
from ui.visitor import COOKIE, is_secret


async def _page(scope, receive, send):
    headers = [(b"content-type", b"text/html; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"page"})


def asked(
    path="/",
    method="GET",
    host="dashboard.example.org",
    to=None,
    scheme="http",
    client="127.0.0.1",
    **headers,
):
    """Return (status, headers) of the answer to a request."""
    sent = []
    listed = [(b"host", host.encode())]
    listed += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": scheme,
        "headers": listed,
        "query_string": b"",
        "client": (client, 50000),
    }

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run((to or gate.Gate(_page))(scope, receive, send))
    return sent[0]["status"], [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]


@pytest.fixture
def public(monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "1")


@pytest.fixture
def private(monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "0")


@pytest.fixture
def session(public, monkeypatch):
    """A running server with one session, "abc"."""
    server = SimpleNamespace(is_active_session=lambda name: name.startswith("abc"))
    monkeypatch.setattr("ui.gate.runtime.get_instance", lambda: server)


@pytest.mark.parametrize("mode", ["public", "private"])
def test_every_answer_has_the_headers(mode, request):
    request.getfixturevalue(mode)
    for path, host in (("/", "localhost:8501"), ("/_stcore/metrics", "localhost:8501"), ("/", "evil.org")):
        found = dict(asked(path, host=host)[1])
        assert {name.lower() for name in gate.HEADERS} <= {name.lower() for name in found}
    policy = gate.HEADERS["Content-Security-Policy"]
    assert (
        "object-src 'none'" in policy
        and "http:" not in policy
        and "unsafe-eval'" not in policy.replace("wasm-unsafe-eval'", "")
    )


def test_a_visitor_gets_a_cookie_once(public):
    (text,) = [value for name, value in asked()[1] if name.lower() == "set-cookie"]
    morsel = SimpleCookie(text)[COOKIE]
    assert is_secret(morsel.value) and morsel["httponly"] and morsel["samesite"] == "Lax"
    assert not morsel["secure"]
    again = asked(cookie=f"theme=dark; {COOKIE}={morsel.value}")[1]
    assert "set-cookie" not in [name.lower() for name, _ in again]


@pytest.mark.parametrize("cookie", ["", "x", "a" * 44, "../" * 20, '"\\'])
def test_a_forged_cookie_is_replaced(public, cookie):
    assert "set-cookie" in [name.lower() for name, _ in asked(cookie=f"{COOKIE}={cookie}")[1]]


@pytest.mark.parametrize("where", [{"scheme": "https"}, {"x_forwarded_proto": "https"}], ids=["tls", "proxy"])
def test_the_cookie_stays_on_tls(public, where):
    (text,) = [value for name, value in asked(**where)[1] if name.lower() == "set-cookie"]
    assert "Secure" in text


def test_a_private_server_knows_no_visitors(private):
    assert "set-cookie" not in [name.lower() for name, _ in asked(host="localhost")[1]]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8501", 200),
        ("127.0.0.1:8501", 200),
        ("[::1]:8501", 200),
        ("rebound.evil.org:8501", 403),
        ("dashboard.example.org", 403),
        ("", 403),
    ],
)
def test_a_private_server_answers_to_loopback_names_only(private, host, status):
    assert asked(host=host)[0] == status


@pytest.mark.parametrize(
    ("client", "status"), [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("10.0.0.7", 403)]
)
def test_a_private_server_answers_to_this_machine_only(private, client, status):
    assert asked(host="localhost", client=client)[0] == status


def test_unless_its_owner_said_so(private):
    assert asked(to=gate.Gate(_page, declared=True), client="10.0.0.7")[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/compare", "GET", 200),
        ("/_stcore/health", "GET", 200),
        ("/_stcore/metrics", "GET", 404),
        ("/_stcore/agent/openapi.json", "GET", 404),
        ("/", "POST", 405),
    ],
)
def test_a_public_server_opens_pages_only(public, path, method, status):
    assert asked(path, method)[0] == status


@pytest.mark.row("19")
def test_uploads_are_bounded_before_a_byte_is_read(session):
    path, upload = "/_stcore/upload_file/abc/f", str(gate.UPLOAD)
    assert asked(path, "PUT")[0] == 411
    assert asked(path, "PUT", content_length=str(gate.UPLOAD + 1))[0] == 413
    assert asked("/_stcore/upload_file/gone/f", "PUT", content_length="5")[0] == 400
    one = gate.Gate(_page)
    given = [asked(path, "PUT", to=one, content_length=upload)[0] for _ in range(5)]
    assert given == [200, 200, 200, 200, 429]
    many = gate.Gate(_page)
    given = [
        asked(f"/_stcore/upload_file/abc{number // 4}/f", "PUT", to=many, content_length=upload)[0]
        for number in range(44)
    ]
    assert given == [200] * 40 + [429] * 4


def test_what_ended_sessions_uploaded_does_not_count(session, monkeypatch):
    one = gate.Gate(_page)
    for _ in range(4):
        asked("/_stcore/upload_file/abc/f", "PUT", to=one, content_length=str(gate.UPLOAD))
    server = SimpleNamespace(is_active_session=lambda name: name == "next")
    monkeypatch.setattr("ui.gate.runtime.get_instance", lambda: server)
    assert asked("/_stcore/upload_file/next/f", "PUT", to=one, content_length="9")[0] == 200


@pytest.mark.parametrize(("limit", "closed"), [(2, True), (3, False)])
def test_connections_are_bounded(public, monkeypatch, limit, closed):
    monkeypatch.setattr(gate, "CONNECTIONS", limit)
    sent = []

    async def run():
        gone = asyncio.Event()

        async def stay(scope, receive, send):
            await gone.wait()

        async def send(message):
            sent.append(message)

        door = gate.Gate(stay)
        scope = {"type": "websocket", "path": "/_stcore/stream", "headers": []}
        others = [asyncio.create_task(door(scope, None, send)) for _ in range(2)]
        await asyncio.sleep(0)
        last = asyncio.create_task(door(scope, None, send))
        await asyncio.sleep(0)
        gone.set()
        await asyncio.gather(*others, last)
        assert door._open == 0

    asyncio.run(run())
    assert bool(sent) is closed


@pytest.mark.row("48")
@pytest.mark.parametrize("mode", ["public", "private"])
def test_no_message_reaches_beyond_its_session(mode, request):
    """`clear_cache` ends the worker process of all visitors, and all wait while addresses are made."""
    request.getfixturevalue(mode)
    kinds = ["clear_cache", "rerun_script", "load_git_info", "set_run_on_save", "app_heartbeat"]
    sent = [BackMsg(**{kind: {} if kind == "rerun_script" else True}) for kind in kinds]
    frames = [each.SerializeToString() for each in sent] + [b"\xff"]
    for files in (1, 1000):
        asking = BackMsg()
        asking.file_urls_request.file_names.extend(["a"] * files)
        frames.append(asking.SerializeToString())
    waiting = [
        {"type": "websocket.connect"},
        *({"type": "websocket.receive", "bytes": each} for each in frames),
    ]
    waiting.append({"type": "websocket.disconnect"})
    arrived = []

    async def receive():
        return waiting.pop(0)

    async def server(scope, receive, send):
        while (message := await receive())["type"] != "websocket.disconnect":
            arrived.append(message.get("bytes"))

    scope = {"type": "websocket", "path": "/_stcore/stream", "headers": [(b"host", b"localhost")]}
    asyncio.run(gate.Gate(server, declared=True)(scope, receive, None))
    passed = frames if mode == "private" else [frames[1], *frames[4:7]]
    assert arrived == [None, *passed]


@pytest.mark.row("48")
def test_what_a_proxy_may_keep_bears_no_cookie(public):
    async def asset(scope, receive, send):
        headers = [(b"cache-control", b"public, immutable, max-age=31536000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    assert "set-cookie" not in dict(asked("/static/js/index.js", to=gate.Gate(asset))[1])
    found = dict(asked()[1])
    assert "set-cookie" in found and found["cache-control"] == "no-store"

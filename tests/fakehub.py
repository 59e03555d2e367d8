"""A model hub on localhost: a real HTTP server that speaks as much of the hub's protocol as a download
needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "secret" * 5


class Hub:
    """`repositories` maps ids to folders; `answers` maps ids to (status, headers) that are given instead, for
    the whole repository ("info") or its files ("files"). `slow` maps them to how they never end: "silent", or
    "headers" or "body" that come byte by byte; the first answers, `first` of them, do end. `requests` lists
    (method, path) of all that was asked, `tokens` the tokens that came with it, `sent` counts the bytes of
    all bodies. With `garbage`, every answer is a page of HTML; without `ranges`, whole files are sent
    whatever part is asked for.

    An upload with TOKEN puts files into `uploads[id]`; `created` maps the ids of new repositories to whether
    they are private. Ids in `open_to_all` are public, all others private."""

    def __init__(self):
        self.uploads: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, bool] = {}
        self.open_to_all: set[str] = set()
        self.repositories: dict[str, Path] = {}
        self.answers: dict[tuple[str, str], tuple[int, dict[str, str]]] = {}
        self.slow: dict[tuple[str, str], str] = {}
        self.first: dict[tuple[str, str], int] = {}
        self.closing = threading.Event()
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.garbage = False
        self.ranges, self.sent = True, 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def asked_for(self, name: str) -> bool:
        return any(path.endswith("/" + name) for _, path in self.requests)

    def _handler(hub):  # noqa: N805 - the handler below has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer(with_body=True)

            def do_HEAD(self):
                self._answer(with_body=False)

            def do_POST(self):
                path = unquote(urlparse(self.path).path).strip("/")
                hub.requests.append((self.command, path))
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self._send(401, b"{}", {}, with_body=True)
                answer: dict = {}
                if path == "api/repos/create":
                    asked = json.loads(body)
                    repo = f"{asked.get('organization', 'me')}/{asked['name']}"
                    hub.created[repo] = asked.get("visibility") == "private"
                    answer = {"url": f"{hub.url}/{repo}"}
                elif "/preupload/" in path:
                    files = json.loads(body)["files"]
                    modes = {"uploadMode": "regular", "shouldIgnore": False}
                    answer = {"files": [{"path": file["path"], **modes} for file in files]}
                elif "/commit/" in path:
                    repo = path.removeprefix("api/models/").partition("/commit/")[0]
                    entries = [json.loads(line) for line in body.splitlines()]
                    for entry in entries:
                        if entry["key"] == "file":
                            content = base64.b64decode(entry["value"]["content"])
                            hub.uploads.setdefault(repo, {})[entry["value"]["path"]] = content
                    answer = {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
                self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

            def log_message(self, *args):
                pass

            def _answer(self, with_body: bool) -> None:
                path = unquote(urlparse(self.path).path).strip("/")
                hub.requests.append((self.command, path))
                hub.tokens.add((self.headers.get("Authorization") or "").removeprefix("Bearer ") or None)
                if hub.garbage:
                    return self._send(200, b"<html>Please log in to the Wi-Fi</html>", {}, with_body)
                if path.startswith("api/models/"):
                    repo, _, revision = path.removeprefix("api/models/").partition("/revision/")
                    return self._info(repo, revision or "main", with_body)
                repo, _, rest = path.partition("/resolve/")
                revision, _, name = rest.partition("/")
                return self._file(repo, revision, name, with_body)

            def _special(self, repo: str, kind: str, with_body: bool) -> bool:
                if repo not in hub.repositories and (repo, kind) not in hub.answers:
                    self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
                    return True
                if (repo, kind) in hub.slow and hub.first.get((repo, kind), 0) <= 0:
                    self._never_end(hub.slow[repo, kind])
                    return True
                hub.first[repo, kind] = hub.first.get((repo, kind), 0) - 1
                if (repo, kind) in hub.answers:
                    status, headers = hub.answers[repo, kind]
                    self._send(status, b"{}", headers, with_body)
                    return True
                return False

            def _never_end(self, how: str) -> None:
                if how == "body":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000000")
                    self.send_header("ETag", '"0"')
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.end_headers()
                elif how == "headers":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                self.close_connection = True
                with suppress(OSError):  # who has given up hangs up
                    while not hub.closing.wait(0.05):
                        if how != "silent":
                            self.wfile.write(b"x")
                            self.wfile.flush()

            def _info(self, repo: str, revision: str, with_body: bool) -> None:
                if self._special(repo, "info", with_body):
                    return
                if revision not in ("main", COMMIT):
                    return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
                files = [
                    {"rfilename": path.name, "size": path.stat().st_size}
                    for path in sorted(hub.repositories[repo].iterdir())
                ]
                about = {"id": repo, "sha": COMMIT, "siblings": files, "private": repo not in hub.open_to_all}
                body = json.dumps(about).encode()
                self._send(200, body, {"Content-Type": "application/json"}, with_body)

            def _file(self, repo: str, revision: str, name: str, with_body: bool) -> None:
                if self._special(repo, "files", with_body):
                    return
                path = hub.repositories[repo] / name
                if revision not in ("main", COMMIT) or not path.is_file():
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
                body = path.read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
                if (
                    wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                    if hub.ranges
                    else None
                ):
                    first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                    return self._send(206, body[first : last + 1], headers, with_body)
                self._send(200, body, headers, with_body)

            def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    hub.sent += len(body)
                    with suppress(ConnectionError):  # who has read enough hangs up
                        self.wfile.write(body)

        return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub, stopped at the end."""
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def point_library_at(monkeypatch, url: str, cache: Path) -> None:
    """Make huggingface_hub, in this process, talk to `url`, keep its files in `cache`, and carry a token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

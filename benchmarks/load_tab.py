"""One browser tab without a browser, for `load.py`: it speaks the websocket protocol of Streamlit's page.

Like the page's script, a tab sends protobuf messages (`BackMsg`) and reads the answers (`ForwardMsg`). It
keeps large messages and names them in the next request, so that the server need not send them again. It
reruns fragments in the intervals that the server states. Nothing is drawn.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlencode

import httpx2
from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE = 60.0  # seconds until a missing answer is an error
KEPT_RUNS = 2  # runs for which the page keeps an unused message, as in Streamlit's configuration


class Rerun(NamedTuple):
    """A request of `kind` ("page", "widget" or "fragment") from `page`, answered at the time `at`."""

    at: float
    kind: str
    page: str
    seconds: float


@dataclass
class Record:
    """What the tabs of one program saw."""

    reruns: list[Rerun] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    messages: int = 0
    nbytes: int = 0

    def rerun(self, kind: str, page: str, began: float) -> None:
        """Add a rerun that began at `began` and ended now."""
        now = time.monotonic()
        self.reruns.append(Rerun(now, kind, page, now - began))


@dataclass(frozen=True)
class Widget:
    """A widget on the page that shows now. `change` writes another value into a state, given a random number
    in [0, 1)."""

    id: str
    kind: str
    label: str
    change: Callable[[WidgetState, float], None]


class Tab:
    """A tab at `address` (host:port), open inside `async with`. Tabs of one `browser` share its cookies."""

    def __init__(self, address: str, record: Record, browser: httpx2.AsyncClient):
        self._address, self._record, self._browser = address, record, browser
        self.pages: dict[str, tuple[str, str]] = {}  # title -> hash, path of its URL
        self.widgets: dict[str, Widget] = {}
        self._drawn: dict[str, Widget] = {}  # by the run in progress
        self._values: dict[str, WidgetState] = {}  # widgets that were changed on this page
        self._page_hash, self._path, self._query = "", "", ""
        self._cache: dict[str, tuple[ForwardMsg, int]] = {}  # hash -> message, run that used it last
        self._runs = 0
        self._answer: asyncio.Future | None = None
        self._timers: dict[str, asyncio.Task] = {}  # of fragments that rerun by themselves
        self._waiting: dict[str, float] = {}  # fragment -> since when
        self._closing = False

    async def __aenter__(self) -> "Tab":
        await self._browser.get(f"http://{self._address}/")
        cookies = "; ".join(f"{name}={value}" for name, value in self._browser.cookies.items())
        self._socket: ClientConnection = await connect(
            f"ws://{self._address}/_stcore/stream",
            additional_headers={"Cookie": cookies} if cookies else None,
            subprotocols=["streamlit"],
            origin=f"http://{self._address}",
            max_size=None,
            open_timeout=PATIENCE,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exception) -> None:
        self._closing = True
        self._stop_timers()
        await self._socket.close()
        with suppress(asyncio.CancelledError):
            await self._reader

    @property
    def follows(self) -> bool:
        """Whether a fragment of the page reruns by itself: a run in progress is shown."""
        return bool(self._timers)

    @property
    def page(self) -> str:
        """The title of the page that shows; "" if it is not known yet."""
        return next((title for title, (key, _) in self.pages.items() if key == self._page_hash), "")

    async def enter(self, path: str = "", **query: str) -> None:
        """Open the URL of a page in this new tab; the first page if `path` is ""."""
        self._path, self._query = path, urlencode(query)
        await self._ask("page")

    async def turn_to(self, title: str) -> None:
        """Choose the page `title` in the menu."""
        (self._page_hash, self._path), self._query = self.pages[title], ""
        self._values.clear()
        await self._ask("page")

    async def change(self, widget: Widget, chance: float) -> None:
        """Give `widget` another value, or press it if it is a button."""
        state = WidgetState(id=widget.id)
        widget.change(state, chance)
        if widget.kind == "button":
            await self._ask("widget", state)
        else:
            self._values[widget.id] = state
            await self._ask("widget")

    async def _ask(self, kind: str, *pressed: WidgetState) -> None:
        """Request a run of the page and wait for its end."""
        self._answer = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        try:
            await self._send(pressed)
            await asyncio.wait_for(self._answer, PATIENCE)
        except TimeoutError:
            self._record.errors.append(f"no answer within {PATIENCE:.0f} s ({kind}, {self.page})")
        except ConnectionClosed as closed:
            self._record.errors.append(f"the connection was closed: {closed}")
        else:
            self._record.rerun(kind, self.page, began)
        finally:
            self._answer = None

    async def _send(self, pressed=(), fragment: str = "") -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_script_hash = self._query, self._page_hash
        state.page_name = "" if self._page_hash else self._path
        state.fragment_id, state.is_auto_rerun = fragment, bool(fragment)
        state.cached_message_hashes.extend(self._cache)
        state.widget_states.widgets.extend([*self._values.values(), *pressed])
        state.context_info.timezone, state.context_info.locale = "UTC", "en-US"
        state.context_info.url = f"http://{self._address}/"
        state.context_info.color_scheme = "light"
        await self._socket.send(message.SerializeToString())

    async def _read(self) -> None:
        try:
            async for data in self._socket:
                self._record.messages += 1
                self._record.nbytes += len(data)
                self._take(ForwardMsg.FromString(data))
        except ConnectionClosed as closed:
            if not self._closing:
                self._record.errors.append(f"the connection was closed: {closed}")
        if not self._closing and self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionClosed(None, None))

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            if message.ref_hash not in self._cache:
                self._record.errors.append("the server refers to a message that was never sent")
                return
            message = self._cache[message.ref_hash][0]
            kind = message.WhichOneof("type")
        if message.metadata.cacheable:
            self._cache[message.hash] = (message, self._runs)
        if kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            self._draw(message.delta.new_element)
        elif kind == "new_session" and not message.metadata.run.fragment_ids:
            self._page_hash = message.new_session.page_script_hash or self._page_hash
            self._drawn = {}
            self._stop_timers()
        elif kind == "navigation":
            pages = message.navigation.app_pages
            self.pages = {page.page_name: (page.page_script_hash, page.url_pathname) for page in pages}
        elif kind == "page_info_changed":
            self._query = message.page_info_changed.query_string
        elif kind == "auto_rerun":
            fragment, interval = message.auto_rerun.fragment_id, message.auto_rerun.interval
            if fragment not in self._timers:
                self._timers[fragment] = asyncio.create_task(self._repeat(fragment, interval))
        elif kind == "stop_auto_rerun":
            for fragment in message.stop_auto_rerun.fragment_ids:
                self._stop_timer(fragment)
        elif kind == "page_not_found":
            self._record.errors.append("page not found")
        elif kind == "script_finished":
            self._finished(message)

    def _draw(self, element: Element) -> None:
        kind = element.WhichOneof("type")
        if kind == "exception":
            shown = element.exception
            self._record.errors.append(f"exception on the page: {shown.type}: {shown.message[:200]}")
        elif kind == "alert" and element.alert.format == Alert.ERROR:
            self._record.errors.append(f"error on the page: {element.alert.body[:200]}")
        elif kind in CHANGES:
            shown = getattr(element, kind)
            change = None if shown.disabled else CHANGES[kind](shown)
            if change is not None:
                self._drawn[shown.id] = Widget(shown.id, kind, shown.label, change)

    def _finished(self, message: ForwardMsg) -> None:
        """Take note of the end of a run. A run that ends early is followed by another."""
        status = message.script_finished
        if status == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
            self._record.errors.append("the script does not compile")
        elif status == ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY:
            for fragment in message.metadata.run.fragment_ids:
                if began := self._waiting.pop(fragment, 0.0):
                    self._record.rerun("fragment", self.page, began)
            self.widgets.update(self._drawn)
            return
        elif status != ForwardMsg.FINISHED_SUCCESSFULLY:
            return
        self.widgets = dict(self._drawn)
        self._values = {name: value for name, value in self._values.items() if name in self.widgets}
        self._runs += 1
        for name in [name for name, (_, used) in self._cache.items() if self._runs - used > KEPT_RUNS]:
            del self._cache[name]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    async def _repeat(self, fragment: str, interval: float) -> None:
        """Rerun `fragment` every `interval` seconds, as the page's script does."""
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            if now - self._waiting.setdefault(fragment, now) > PATIENCE:
                self._record.errors.append(f"no answer within {PATIENCE:.0f} s (fragment)")
                self._waiting[fragment] = now
            with suppress(ConnectionClosed):  # the reader reports it
                await self._send(fragment=fragment)

    def _stop_timers(self) -> None:
        for fragment in list(self._timers):
            self._stop_timer(fragment)

    def _stop_timer(self, fragment: str) -> None:
        self._waiting.pop(fragment, None)
        if task := self._timers.pop(fragment, None):
            task.cancel()


def _pressed(shown):
    return lambda state, chance: setattr(state, "trigger_value", True)


def _flipped(shown):
    return lambda state, chance: setattr(state, "bool_value", chance < 0.5)


def _moved(shown):
    if shown.options:  # a slider over words
        return lambda state, chance: state.string_array_value.data.append(_one(shown.options, chance))
    steps = int((shown.max - shown.min) / shown.step) if shown.step else 0

    def change(state: WidgetState, chance: float) -> None:
        state.double_array_value.data.append(shown.min + shown.step * int(chance * (steps + 1)))

    return change if len(shown.default) == 1 else None


def _chosen(shown):
    return lambda state, chance: setattr(state, "string_value", _one(shown.options, chance))


def _picked(shown):
    words = [option.content for option in shown.options]
    return lambda state, chance: state.string_array_value.data.append(_one(words, chance))


def _one(options, chance: float):
    return options[int(chance * len(options))]


# How a widget of each kind is given another value; None if it cannot be. Texts are left as they are.
CHANGES: dict[str, Callable] = {
    "button": _pressed,
    "checkbox": _flipped,
    "slider": _moved,
    "radio": lambda shown: _chosen(shown) if shown.options else None,
    "selectbox": lambda shown: _chosen(shown) if shown.options else None,
    "button_group": lambda shown: _picked(shown) if shown.options else None,
}

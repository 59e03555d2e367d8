"""One generation request to the playground's process. A thread collects its events, so generation continues
while the user changes pages."""

import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qcore.base.errors import InputError, QcoreError
from qcore.jobs.resident import Event, Resident
from qcore.recipes import Recipe

LONGEST_PROMPT, MOST_RECIPES, MOST_TOKENS = 20_000, 4, 128  # characters; of a request on a public server
MOST_WAITING = 8  # requests of all visitors of a public server
LONGEST_SECONDS = 300.0  # of a request, once it is its turn
_sessions: weakref.WeakSet["Session"] = weakref.WeakSet()
_lock = threading.Lock()


@dataclass
class Pane:
    """The text that one recipe has generated so far. `state` is waiting, loading, generating, done, stopped
    or failed; `note` explains it; `result` holds the figures of a finished text."""

    recipe: str
    state: str = "waiting"
    note: str = ""
    fraction: float = 0.0
    text: str = ""
    result: dict = field(default_factory=dict)


class Session:
    """Start a request at once. `panes` fill in the order of the recipes; `error` is a sentence if the whole
    request failed. `visitor`: who asks on a public server, which bounds the requests at a time and their
    time; raise `InputError` if there are too many."""

    def __init__(
        self,
        resident: Resident,
        prompt: str,
        recipes: Sequence[Recipe],
        new_tokens: int,
        *,
        visitor: str | None = None,
        **sampling: Any,
    ):
        if visitor is not None:
            _check(prompt, recipes, new_tokens)
        self.visitor = visitor
        self.prompt = prompt
        self.sampling = {"new_tokens": new_tokens, **sampling}
        self.panes = {recipe.name: Pane(recipe.name) for recipe in recipes}
        self.error: str | None = None
        self._stopped = threading.Event()
        self._arguments = (resident, prompt, recipes, new_tokens, sampling)
        self._thread = threading.Thread(target=self._follow, name="playground session", daemon=True)
        _begin(self, self._thread)

    @property
    def active(self) -> bool:
        """Return whether text is still being generated."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the request to end."""
        self._thread.join(timeout)

    def stop(self) -> None:
        """Stop generating; keep the text so far."""
        self._stopped.set()

    def _follow(self) -> None:
        resident, prompt, recipes, new_tokens, sampling = self._arguments
        try:
            events = resident.generate(prompt, new_tokens, recipes=recipes, **sampling)
            began = None
            for event in events:
                self._take(event)
                began = began or (time.monotonic() if event.recipe is not None else None)
                late = self.visitor is not None and began and time.monotonic() - began > LONGEST_SECONDS
                if late:
                    self.error = f"Texts are limited to {LONGEST_SECONDS / 60:.0f} minutes on this server."
                if late or self._stopped.is_set():
                    events.close()
                    break
        except QcoreError as error:
            self.error = str(error)
        for pane in self.panes.values():
            if pane.state not in ("done", "failed"):
                pane.state = "stopped" if self._stopped.is_set() else "failed" if self.error else pane.state

    def _take(self, event: Event) -> None:
        if event.recipe is None:
            for pane in self.panes.values():
                pane.note = "waiting for another request" if event.kind == "queued" else pane.note
            return
        pane = self.panes[event.recipe]
        if event.kind == "loading":
            pane.state, pane.note = "loading", event.text
            pane.fraction = event.done / event.total if event.total else 0.0
        elif event.kind == "start":
            pane.state, pane.note = "generating", ""
        elif event.kind == "text":
            pane.text += event.text
        elif event.kind == "done":
            pane.state, pane.result = "done", event.result or {}
            pane.text = pane.result.get("text", pane.text)
        elif event.kind == "error":
            pane.state, pane.note = "failed", event.text


def _check(prompt: str, recipes: Sequence[Recipe], new_tokens: int) -> None:
    """Raise `InputError` for a request that the form of a public server does not offer: a browser may send
    anything."""
    if len(prompt) > LONGEST_PROMPT or len(recipes) > MOST_RECIPES or not 1 <= new_tokens <= MOST_TOKENS:
        raise InputError(
            f"This server allows prompts of {LONGEST_PROMPT:,} characters, {MOST_RECIPES} recipes and "
            f"{MOST_TOKENS} new tokens at most."
        )


def _begin(session: Session, thread: threading.Thread) -> None:
    """Start a new request. Raise `InputError` if its visitor has another one, or too many are waiting."""
    with _lock:
        if session.visitor is not None:
            active = [each for each in _sessions if each.active]
            if any(each.visitor == session.visitor for each in active):
                raise InputError("Another text of yours is being generated. Wait for it, or stop it.")
            if len(active) >= MOST_WAITING:
                raise InputError(f"{len(active)} texts are being generated or wait. Try again in a moment.")
        thread.start()
        _sessions.add(session)

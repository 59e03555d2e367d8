"""One request to the playground's process, followed by a thread, so that pages come and go while texts are
being written."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from qcore.base.errors import QcoreError
from qcore.jobs.resident import Resident
from qcore.recipes import Recipe


@dataclass
class Pane:
    """What one recipe has written so far. `state`: waiting, loading, writing, done or failed; `note` says
    more about it."""

    recipe: str
    state: str = "waiting"
    note: str = ""
    fraction: float = 0.0
    text: str = ""
    result: dict = field(default_factory=dict)


class Session:
    """Starts at once. `panes` fill up in the order of the recipes; `error` is a sentence if the request
    failed as a whole."""

    def __init__(
        self, resident: Resident, prompt: str, recipes: Sequence[Recipe], new_tokens: int, **sampling
    ):
        self.prompt = prompt
        self.sampling = {"new_tokens": new_tokens, **sampling}
        self.panes = {recipe.name: Pane(recipe.name) for recipe in recipes}
        self.error: str | None = None
        self._stopped = threading.Event()
        self._arguments = (resident, prompt, recipes, new_tokens, sampling)
        self._thread = threading.Thread(target=self._follow, name="session", daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Is anything still being written?"""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait until everything is written, at most `timeout` seconds."""
        self._thread.join(timeout)

    def stop(self) -> None:
        """End early; what is written stays."""
        self._stopped.set()

    def _follow(self) -> None:
        resident, prompt, recipes, new_tokens, sampling = self._arguments
        try:
            events = resident.generate(prompt, new_tokens, recipes=recipes, **sampling)
            for event in events:
                self._take(event)
                if self._stopped.is_set():
                    events.close()
                    break
        except QcoreError as error:
            self.error = str(error)
        for pane in self.panes.values():
            if pane.state not in ("done", "failed"):
                pane.state = "stopped" if self._stopped.is_set() else "failed" if self.error else pane.state

    def _take(self, event) -> None:
        if event.recipe is None:
            for pane in self.panes.values():
                pane.note = "waiting for another text" if event.kind == "queued" else pane.note
            return
        pane = self.panes[event.recipe]
        if event.kind == "loading":
            pane.state, pane.note = "loading", event.text
            pane.fraction = event.done / event.total if event.total else 0.0
        elif event.kind == "start":
            pane.state, pane.note = "writing", ""
        elif event.kind == "text":
            pane.text += event.text
        elif event.kind == "done":
            pane.state, pane.result = "done", event.result or {}
            pane.text = pane.result.get("text", pane.text)
        elif event.kind == "error":
            pane.state, pane.note = "failed", event.text

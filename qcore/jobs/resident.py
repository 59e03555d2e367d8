"""The playground's engine: a process that keeps a model loaded in several forms and writes texts with them.

A page must not hold models (a crash would take the dashboard along, and memory would never come back), so
`Resident` talks to `python -m qcore.jobs.resident_worker` in JSON lines: requests on its standard input,
events on its standard output. The process ends when it is closed, when it has been idle for long, and when
its parent ends in whatever way.

    with Resident("smollm2-135m", ["fp32", "int4-g64"]) as resident:
        for event in resident.generate("The capital of France is", max_new_tokens=20):
            if event.kind == "text":
                print(event.recipe, event.text)
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qcore.base import errors
from qcore.base.errors import InputError, QcoreError, RunError
from qcore.formats.kv import NONE
from qcore.recipes import Recipe, parse

IDLE_SECONDS = 900.0
CLOSE_SECONDS = 2.0
COMMAND = [sys.executable, "-m", "qcore.jobs.resident_worker"]


@dataclass(frozen=True)
class Event:
    """What happened. `kind` is one of

    queued     another text is being written first
    loading    the recipe's model is being loaded or quantized: `done` of `total` (0: unknown) steps; `text`
               names the step
    start      the recipe's model is ready and begins to write
    text       a piece of text, in `text`
    done       the recipe has finished; `result` is `Generated.to_dict()` with `first_divergence` (index of
               the first token that differs from the first recipe's, or None) and `same_characters` (how many
               characters of the text precede it)
    error      the recipe failed, the others go on; `text` is a sentence
    """

    kind: str
    recipe: str | None = None
    text: str = ""
    done: int = 0
    total: int = 0
    result: dict | None = field(default=None)


class Resident:
    """Client of one such process, started at the first request, and again after it has ended idle. Safe to
    share between threads: requests are answered one after another."""

    def __init__(
        self,
        model: str,
        recipes: Sequence[Recipe | str],
        *,
        revision: str | None = None,
        threads: int | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ):
        self.model = model
        self.revision = revision
        self.recipes = tuple(parse(recipe) if isinstance(recipe, str) else recipe for recipe in recipes)
        if not self.recipes:
            raise InputError("Choose at least one recipe.")
        self._threads = threads
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __enter__(self) -> "Resident":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        child = self._child
        return child.process.pid if child and child.running else None

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        chat: bool = False,
        kv: str = NONE,
        recipes: Sequence[Recipe | str] | None = None,
    ) -> Iterator[Event]:
        """Write a text with each of the recipes (or those given: names of these, or other recipes, saved
        models among them), one after another, and yield what happens.

        The other arguments are those of `generate_text`. Closing the iterator cancels what is left. Raises
        `InputError` if the request cannot be served at all, `RunError` if the process was killed.
        """
        known = {recipe.name: recipe for recipe in self.recipes}
        chosen = [
            known[recipe] if isinstance(recipe, str) else recipe
            for recipe in (known if recipes is None else recipes)
            if not isinstance(recipe, str) or recipe in known
        ]
        request = {
            "op": "generate",
            "model": self.model,
            "revision": self.revision,
            "recipes": [recipe.to_dict() for recipe in chosen],
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "sampling": {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed},
            "chat": chat,
            "kv": kv,
        }
        return self._events(request)

    def _events(self, request: dict) -> Iterator[Event]:
        with self._lock:
            if self._child is None or not self._child.running:
                self._child = _Child(self._threads, self._idle_seconds)
                weakref.finalize(
                    self, self._child.hang_up
                )  # a client that is forgotten takes its process along
            child = self._child
        number, inbox = child.send(request)
        finished = False
        try:
            while True:
                event = inbox.get()
                kind = event.pop("event")
                finished = kind in ("end", "refused", "gone")
                if kind == "end":
                    return
                if kind == "gone":
                    raise RunError(child.obituary())
                if kind == "refused":
                    raise getattr(errors, event["type"], QcoreError)(event["text"])
                yield Event(kind, **event)
        finally:
            child.forget(number)
            if not finished:
                child.cancel(number)

    def cancel(self) -> None:
        """Stop everything that is being written or waits; the iterators end. The models stay loaded."""
        if self._child:
            self._child.cancel_all()

    def close(self) -> None:
        """End the process. Iterators that still run raise `RunError`."""
        if self._child:
            self._child.close()


class _Child:
    """The process, and the thread that hands out its events."""

    def __init__(self, threads: int | None, idle_seconds: float):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        command = [*COMMAND, str(idle_seconds), str(threads or 0)]
        self._inboxes: dict[int, queue.Queue[dict]] = {}
        self._lock = threading.RLock()  # the garbage collector may call `hang_up` in the middle of anything
        self._number = 0
        self._closed = False
        self.running = True
        below, pipe = os.pipe()
        try:
            self.process = subprocess.Popen(
                command, stdin=below, stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8"
            )
        except OSError as error:
            os.close(pipe)
            raise RunError(
                "The playground's process could not be started; the system is out of memory or processes."
            ) from error
        finally:
            os.close(below)
        self._input = os.fdopen(pipe, "w", encoding="utf-8")
        threading.Thread(target=self._read, name="resident", daemon=True).start()

    def _read(self) -> None:
        """Hand out the events of the process until it ends."""
        try:
            for line in self.process.stdout or ():
                self._hand_out(line)
            self.process.wait()
        finally:
            with self._lock:
                self.running = False
                for inbox in self._inboxes.values():
                    inbox.put({"event": "gone"})

    def _hand_out(self, line: str) -> None:
        """Put an event where it is waited for. A line that a kill has cut short is passed over."""
        try:
            event = json.loads(line)
            number = event.pop("id")
        except (ValueError, KeyError, AttributeError):
            return
        with self._lock:
            inbox = self._inboxes.get(number)
        if inbox:
            inbox.put(event)

    def send(self, request: dict) -> tuple[int, queue.Queue]:
        """Hand over a request; its events arrive in the queue that is returned with its number."""
        with self._lock:
            self._number += 1
            number = self._number
            inbox: queue.Queue[dict] = queue.Queue()
            self._inboxes[number] = inbox
            if not self.running:
                inbox.put({"event": "gone"})
        self._write({**request, "id": number})
        return number, inbox

    def _write(self, message: dict) -> None:
        with (
            self._lock,
            contextlib.suppress(OSError, ValueError),
        ):  # it has just ended: the reader tells everyone so
            self._input.write(json.dumps(message) + "\n")
            self._input.flush()

    def forget(self, number: int) -> None:
        """Events of this request are dropped from now on."""
        with self._lock:
            self._inboxes.pop(number, None)

    def cancel(self, number: int) -> None:
        """Ask for an early end of one request."""
        self._write({"op": "cancel", "id": number})

    def cancel_all(self) -> None:
        """Ask for an early end of every request."""
        with self._lock:
            numbers = list(self._inboxes)
        for number in numbers:
            self.cancel(number)

    def hang_up(self) -> None:
        """Close its input, upon which it ends."""
        self._closed = True
        with self._lock, contextlib.suppress(OSError):
            self._input.close()

    def close(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self.hang_up()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def obituary(self) -> str:
        """Why it ended, as one sentence."""
        if self._closed:
            return "The playground was closed while it was writing."
        code = self.process.poll()
        if code is not None and code < 0:
            cause = (
                "most likely because memory ran out"
                if code == -9
                else "by a fault in native code"
                if code in (-11, -4, -6)
                else "from outside"
            )
            return (
                f"The playground's process was ended by signal {-code}, {cause}. Try again, or choose fewer "
                "recipes or a smaller model."
            )
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        last = self._log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"The playground's process ended by itself{f' ({last[:200]})' if last else ''}. Try again."

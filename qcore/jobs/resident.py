"""The worker process of the dashboard: everything that needs torch or transformers happens there.

The server of the pages imports neither: it stays small and idle, a crash of native code does not end it, and
memory is freed when the worker ends. `WorkerProcess` exchanges JSON lines with
`python -m qcore.jobs.resident_worker`: requests on its standard input, events on its standard output. The
process starts with the first request, and ends when it is closed, when it is idle, and when its parent ends
for any reason.

    process = WorkerProcess()
    checkpoint = process.call(answers.resolve, "smollm2-135m", None)

The playground keeps a model loaded in several forms there, and generates text with them.

    with Resident("smollm2-135m", ["fp32", "int4-g64"]) as resident:
        for event in resident.generate("The capital of France is", max_new_tokens=20):
            if event.kind == "text":
                print(event.recipe, event.text)
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar, cast

from qcore.base import errors
from qcore.base.errors import InputError, QcoreError, RunError
from qcore.base.process import environment
from qcore.base.progress import Progress
from qcore.formats.kv import NONE
from qcore.jobs import wire
from qcore.recipes import Recipe, parse

IDLE_SECONDS = 300.0
CLOSE_SECONDS = 2.0
RETIRED = 75  # the exit code of a process that was idle
OVERTIME = 76  # that of one whose request took longer than a public server allows
OVERSIZE = 77  # that of one that had taken nearly all memory there
LONGEST_SECONDS = 900.0  # of a request there: a hostile tokenizer or template may never come to an end
STALLED_SECONDS = 180  # for which native code may keep every other thread there from running
COMMAND = [sys.executable, "-m", "qcore.jobs.resident_worker"]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Event:
    """One event of a request. `kind` is one of

    queued     another request is being answered first
    loading    the recipe's model is being loaded or quantized: `done` of `total` (0: unknown), with the
               step in `text`
    start      the recipe's model is ready and starts generating
    text       a piece of the output, in `text`
    done       the recipe has finished; `result` is `Generated.to_dict()` with `first_divergence` (index of
               the first token that differs from the first recipe's, or None) and `same_characters` (length
               of the text before that token)
    error      the recipe failed, the others continue; `text` is a sentence
    value      the answer of a call, in `text` as `wire.pack` writes it
    """

    kind: str
    recipe: str | None = None
    text: str = ""
    done: int = 0
    total: int = 0
    result: dict | None = field(default=None)


class WorkerProcess:
    """The client of one such process, started at the first request, and restarted after it has ended.
    Thread-safe: generations are answered one after another, and calls beside them."""

    def __init__(self, *, threads: int | None = None, idle_seconds: float = IDLE_SECONDS):
        self._threads = threads
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id, None if it is not running."""
        child = self._child
        return child.process.pid if child and child.running else None

    def call(self, answer: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function `answer` of `qcore.jobs.answers` returns for the arguments. An exception
        raised by the argument `progress`, which is called in this process, cancels the call.

        Raise the `QcoreError` that it raises, `RunError` if the process was killed or the call cancelled.
        """
        progress = cast(Progress | None, kwargs.pop("progress", None))
        request = {"op": "call", "name": answer.__name__, "arguments": wire.pack((args, kwargs))}
        for event in self.events(request):
            if event.kind == "value":
                return wire.unpack(event.text)
            if event.kind == "loading" and progress is not None:
                progress(event.done, event.total, event.text)
        raise RunError("The work was cancelled.")

    def events(self, request: dict) -> Iterator[Event]:
        """Send a request and yield its events. Closing the iterator cancels it.

        Raise the `QcoreError` with which the whole request was refused, `RunError` if the process was killed.
        """
        while True:
            child = self._running()
            number, inbox = child.send(request)
            finished = answered = False
            try:
                while True:
                    event = inbox.get()
                    kind = event.pop("event")
                    finished = kind in ("end", "refused", "gone")
                    if kind == "end":
                        return
                    if kind == "gone":
                        if child.retired and not answered:
                            break  # it ended for being idle, before it read this request
                        raise RunError(child.obituary())
                    if kind == "refused":
                        raise getattr(errors, event["type"], QcoreError)(event["text"])
                    answered = True
                    yield Event(kind, **event)
            finally:
                child.forget(number)
                if not finished:
                    child.cancel(number)

    def _running(self) -> "_Child":
        with self._lock:
            if self._child is None or not self._child.running:
                self._child = _Child(self._threads, self._idle_seconds)
                weakref.finalize(self, self._child.hang_up)  # a garbage-collected client ends its process
            return self._child

    def cancel(self) -> None:
        """Cancel all running and waiting requests; their iterators end. The models stay loaded."""
        if self._child:
            self._child.cancel_all()

    def close(self) -> None:
        """End the process. Iterators still running raise `RunError`."""
        if self._child:
            self._child.close()


class Resident:
    """A model under several recipes, which generates text in a worker process: in `process`, or in one of its
    own."""

    def __init__(
        self,
        model: str,
        recipes: Sequence[Recipe | str],
        *,
        revision: str | None = None,
        process: WorkerProcess | None = None,
        threads: int | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ):
        self.process = process or WorkerProcess(threads=threads, idle_seconds=idle_seconds)
        self.model = model
        self.revision = revision
        self.recipes = tuple(parse(recipe) if isinstance(recipe, str) else recipe for recipe in recipes)
        if not self.recipes:
            raise InputError("Choose at least one recipe.")

    def __enter__(self) -> "Resident":
        return self

    def __exit__(self, *exception) -> None:
        self.process.close()

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
        """Generate a text with each recipe (or with `recipes`: names of the client's recipes, or other
        recipes, including saved models), one after another, and yield the events.

        The other arguments are those of `generate_text`. Closing the iterator cancels the rest. Raise
        `InputError` if the whole request is invalid, `RunError` if the process was killed.
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
        return self.process.events(request)


class _Child:
    """The process, and the thread that distributes its events."""

    def __init__(self, threads: int | None, idle_seconds: float):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        command = [*COMMAND, str(idle_seconds), str(threads or 0)]
        self._inboxes: dict[int, queue.Queue[dict]] = {}
        self._lock = threading.RLock()  # the garbage collector may call `hang_up` at any point
        self._number = 0
        self._closed = False
        self.running = True
        below, pipe = os.pipe()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=below,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment(),
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            os.close(pipe)
            raise RunError(
                "The worker process could not be started; the system is out of memory or processes."
            ) from error
        finally:
            os.close(below)
        self._input = os.fdopen(pipe, "w", encoding="utf-8")
        threading.Thread(target=self._read, name="resident", daemon=True).start()

    def _read(self) -> None:
        """Distribute the events of the process until it ends."""
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
        """Put an event into the queue of its request. Skip a line truncated by a kill."""
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
        """Send a request; return its number and the queue of its events."""
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
        ):  # the process just ended: the reader thread reports that
            self._input.write(json.dumps(message) + "\n")
            self._input.flush()

    def forget(self, number: int) -> None:
        """Drop further events of this request."""
        with self._lock:
            self._inboxes.pop(number, None)

    def cancel(self, number: int) -> None:
        """Request the cancellation of one request."""
        self._write({"op": "cancel", "id": number})

    def cancel_all(self) -> None:
        """Request the cancellation of every request."""
        with self._lock:
            numbers = list(self._inboxes)
        for number in numbers:
            self.cancel(number)

    def hang_up(self) -> None:
        """Close the standard input of the process, which makes it exit."""
        self._closed = True
        with self._lock, contextlib.suppress(OSError):
            self._input.close()

    def close(self) -> None:
        """Close the input of the process, and kill it if it does not exit in time."""
        self.hang_up()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def retired(self) -> bool:
        """Whether the process ended for being idle."""
        return not self._closed and self.process.poll() == RETIRED

    def obituary(self) -> str:
        """Return why the process ended, as one sentence."""
        if self._closed:
            return "The worker process was closed before it had answered."
        code = self.process.poll()
        if code == OVERTIME:
            return (
                f"A request took longer than {LONGEST_SECONDS / 60:.0f} minutes, the most that this server "
                "allows, so its process was ended. Try again, or choose another model."
            )
        if code == -signal.SIGALRM:
            return (
                f"A model kept the worker process from answering for {STALLED_SECONDS} seconds, so it was "
                "ended. Try again, or choose another model."
            )
        if code == OVERSIZE:
            return (
                "The requests of this moment took nearly all memory of this server, so their process was "
                "ended. Try again, or choose a smaller model."
            )
        if code is not None and code < 0:
            cause = (
                "most likely because memory ran out"
                if code == -9
                else "by a fault in native code"
                if code in (-11, -4, -6)
                else "from outside"
            )
            return (
                f"The worker process was ended by signal {-code}, {cause}. Try again, or choose fewer "
                "recipes or a smaller model."
            )
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        last = self._log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"The worker process ended by itself{f' ({last[:200]})' if last else ''}. Try again."

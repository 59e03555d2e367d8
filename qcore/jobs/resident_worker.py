"""`python -m qcore.jobs.resident_worker IDLE_SECONDS THREADS`: answer the calls of the pages, keep models in
memory and generate text; see `resident.py`.

Requests are JSON lines on standard input, read by a separate thread so that "cancel" arrives during a
generation. Generations are answered one after another, calls beside them. Events are JSON lines on the
original standard output; output of libraries goes to standard error.
The process exits at the end of its input. When another model would not fit, the least recently used models
are dropped.
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from qcore.base import errors, extensions, logs
from qcore.base.errors import QcoreError
from qcore.base.home import is_public
from qcore.base.process import lifeline
from qcore.base.progress import Progress
from qcore.base.quiet import silence
from qcore.jobs import wire
from qcore.jobs.answers import ANSWERS
from qcore.jobs.resident import LONGEST_SECONDS, OVERSIZE, OVERTIME, RETIRED, STALLED_SECONDS
from qcore.measurement.devices import out_of_memory
from qcore.measurement.memory import give_back, watch_memory
from qcore.recipes import Recipe

if TYPE_CHECKING:
    from qcore.verbs.prepare import Prepared

PROGRESS_SECONDS = 0.1
CALLS = 4  # calls answered at the same time
FETCHES = 16  # calls that mostly wait for the hub, beside them: four slow downloads must not stop all pages
FETCHING = ("resolve", "outline")
POSITIONS = 2048  # tokens of prompt and answer that the memory estimate allows for


class Cancelled(Exception):
    """The client cancelled the rest of a request."""


class Worker:
    """Serve requests until none has arrived for `idle_seconds`."""

    def __init__(self, channel, idle_seconds: float):
        self._channel = channel
        self._idle_seconds = idle_seconds
        self._requests: queue.Queue[dict] = queue.Queue()
        self._cancelled: set[int] = set()
        self._busy = threading.Lock()  # held while a text is generated
        self._writing = threading.Lock()
        self._cache = ModelCache()
        self._calls = ThreadPoolExecutor(CALLS, thread_name_prefix="call")
        self._fetches = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._open = 0  # calls that have not been answered
        self._counting = threading.Lock()
        self._began: dict[int, float] = {}  # requests that are being answered, by number
        self._last = time.monotonic()  # when the last call was answered

    def take(self, line: str) -> None:
        """Queue a request, one line of JSON."""
        request = json.loads(line)
        if request["op"] == "cancel":
            self._cancelled.add(request["id"])
            return
        if request["op"] == "call":
            self._count(1)
            (self._fetches if request["name"] in FETCHING else self._calls).submit(self._reply, request)
            return
        if self._busy.locked() or not self._requests.empty():
            self._emit(request["id"], "queued")
        self._requests.put(request)

    def serve(self) -> None:
        """Generate one text after another, until nothing has been requested for the idle time."""
        wait = self._idle_seconds
        while True:
            try:
                request = self._requests.get(timeout=wait)
            except queue.Empty:
                with self._counting:
                    left = self._last + self._idle_seconds - time.monotonic()
                    wait = self._idle_seconds if self._open else left
                if wait <= 0:
                    return
                continue
            with self._busy:
                event, details = self._answer(request, self._generate)
            self._end(request, event, details)
            wait = self._idle_seconds

    def _reply(self, request: dict) -> None:
        """Answer a call."""
        event, details = self._answer(request, self._call)
        self._end(request, event, details)
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._open += change
            self._last = time.monotonic()

    def _end(self, request: dict, event: str, details: dict) -> None:
        self._cancelled.discard(request["id"])
        self._emit(request["id"], event, **details)

    def _answer(self, request: dict, work: Callable[[dict], None]) -> tuple[str, dict]:
        """Execute a request and return its last event; errors become events."""
        self._began[request["id"]] = time.monotonic()
        try:
            work(request)
        except QcoreError as error:
            return "refused", {"type": _class_of(error), "text": str(error)}
        except Cancelled:
            return "end", {}
        except Exception as error:
            return "refused", {"type": "RunError", "text": _unexpected(error)}
        finally:
            self._began.pop(request["id"], None)
        return "end", {}

    def watch(
        self, seconds: float, end: Callable[[int], None] = os._exit, *, stalled: int | None = None
    ) -> None:
        """End this process when a request takes longer than `seconds`, and when no other thread has run for
        `stalled` seconds: tokenizers decode with Python's lock held, and only the system can end that."""
        while True:
            if stalled is not None:
                signal.alarm(stalled)
            time.sleep(min(5.0, seconds / 4))
            if any(time.monotonic() - began > seconds for began in list(self._began.values())):
                return end(OVERTIME)

    def _call(self, request: dict) -> None:
        """Call a function of `answers` and send what it returns."""
        number, answer = request["id"], ANSWERS[request["name"]]
        extensions.load()
        args, options = wire.unpack(request["arguments"], imports=True)
        if "progress" in inspect.signature(answer).parameters:
            options["progress"] = self._reporter(number, None)
        if number in self._cancelled:
            raise Cancelled
        self._emit(number, "value", text=wire.pack(answer(*args, **options)))

    def _generate(self, request: dict) -> None:
        from qcore import library
        from qcore.evaluation.generation import check_new_tokens
        from qcore.evaluation.sampling import Sampling
        from qcore.formats.kv import kv_format_named

        number = request["id"]
        check_new_tokens(request["max_new_tokens"])
        kv_format_named(request.get("kv"))
        Sampling(**request["sampling"])
        checkpoint = library.resolve(
            request["model"], request["revision"], progress=self._reporter(number, None)
        )
        first = None
        for record in request["recipes"]:
            recipe = Recipe.from_dict(record)
            if number in self._cancelled:
                raise Cancelled
            try:
                result = self._write(request, checkpoint, recipe, first)
                first = first or result
            except Cancelled:
                raise
            except QcoreError as error:
                self._emit(number, "error", recipe=recipe.name, text=str(error))
            except Exception as error:
                text = out_of_memory(error, " for this recipe") or _unexpected(error)
                self._emit(number, "error", recipe=recipe.name, text=text)

    def _write(self, request: dict, checkpoint, recipe: Recipe, first: dict | None) -> dict:
        """Generate one recipe's text; `first` is the output of the first recipe."""
        from qcore.evaluation.generation import first_divergence, generate_text
        from qcore.formats.kv import kv_format_named

        number = request["id"]
        loaded = self._cache.get(checkpoint, recipe, self._reporter(number, recipe.name))
        self._emit(number, "start", recipe=recipe.name)
        generated = generate_text(
            loaded.model,
            loaded.tokenizer,
            request["prompt"],
            request["max_new_tokens"],
            **request["sampling"],
            chat=request["chat"],
            kv=kv_format_named(request.get("kv")),
            on_text=lambda text: self._emit(number, "text", recipe=recipe.name, text=text),
            should_stop=lambda: number in self._cancelled,
        )
        result = generated.to_dict()
        result["first_divergence"] = first_divergence(first["tokens"], generated.tokens) if first else None
        result["same_characters"] = (
            len(os.path.commonprefix([first["text"], generated.text])) if first else len(generated.text)
        )
        self._emit(number, "done", recipe=recipe.name, result=result)
        return result

    def _reporter(self, number: int, recipe: str | None) -> Progress:
        """Return a progress callback that sends at most ten events per second and raises in a cancelled
        request."""
        sent = 0.0

        def report(done: int, total: int, text: str) -> None:
            nonlocal sent
            if number in self._cancelled:
                raise Cancelled
            if time.monotonic() - sent >= PROGRESS_SECONDS:
                sent = time.monotonic()
                self._emit(number, "loading", recipe=recipe, done=done, total=total, text=text)

        return report

    def _emit(self, number: int, event: str, **details) -> None:
        with self._writing:
            try:
                self._channel.write(json.dumps({"id": number, "event": event, **details}) + "\n")
                self._channel.flush()
            except OSError:  # the client has gone
                os._exit(0)


class ModelCache:
    """Loaded models by recipe, most recently used last. Another checkpoint clears the cache, and so does a
    changed file of it."""

    def __init__(self):
        self._models: OrderedDict[tuple, Prepared] = OrderedDict()
        self._original: tuple[str, str, str] | None = None  # the key of the checkpoint

    def get(self, checkpoint, recipe: Recipe, report):
        """Return the model of `checkpoint` with `recipe` applied, loading it if necessary; for a `saved:`
        recipe, the model in its folder unchanged.

        Raise `InputError` for another recipe on a quantized model, `TooLargeError` if the model does not fit
        even alone.
        """
        from qcore.verbs.checks import loaded_from
        from qcore.verbs.prepare import prepare

        if self._original != (original := checkpoint.key):
            self._drop(len(self._models))
            self._original = original
        found, applied = loaded_from(checkpoint, recipe)
        key = found.key, json.dumps(recipe.to_dict(), sort_keys=True)
        if key not in self._models:
            self._make_room(found, applied)
            report(0, 0, "loading the model")
            self._models[key] = prepare(
                found,
                recipe if applied is recipe else None,
                tokens=POSITIONS,
                check_finite=not self._models,
                progress=report,
            )
        self._models.move_to_end(key)
        return self._models[key].loaded

    def _make_room(self, checkpoint, recipe: Recipe) -> None:
        """Drop models until the next one fits; `planning.check_fits` raises the error if it does not fit even
        alone."""
        from qcore import planning

        while self._models:
            held = sum(made.ledger.stored_bytes for made in self._models.values())
            limit = os.environ.get(
                "QCORE_MEMORY_LIMIT"
            )  # counts what is on the cache; what is available does not hold it any more
            found = planning.estimate(checkpoint, recipe, tokens=POSITIONS, window=1)
            if max(found.peak_load_bytes, found.peak_run_bytes) + (held if limit else 0) <= planning.budget():
                return
            self._drop(1)
        planning.check_fits(checkpoint, recipe, tokens=POSITIONS, window=1)

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._models.popitem(last=False)
        gc.collect()
        give_back()


def _class_of(error: QcoreError) -> str:
    """Return the nearest class of qcore.base.errors, which the client raises again."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))


def _unexpected(error: Exception) -> str:
    logging.exception("The request failed")
    first = str(error).strip().partition("\n")[0][:300]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return f"It failed unexpectedly ({what})."


def main(arguments: list[str]) -> None:
    """Serve the parent process until it exits."""
    idle_seconds, threads = float(arguments[0]), int(arguments[1])
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    silence()
    logs.configure()
    if threads:
        import torch

        torch.set_num_threads(threads)
    worker = Worker(channel, idle_seconds)
    if is_public():
        watch_memory(lambda: os._exit(OVERSIZE))
        limits = {"seconds": LONGEST_SECONDS, "stalled": STALLED_SECONDS}
        threading.Thread(target=worker.watch, kwargs=limits, name="watch", daemon=True).start()
    lifeline(worker.take)
    worker.serve()
    channel.close()
    os._exit(RETIRED)


if __name__ == "__main__":
    main(sys.argv[1:])

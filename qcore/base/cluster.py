"""Run commands as Ray tasks: `python COMMAND` in a separate process on a machine of the cluster, with its
output in a file.

If the machine or the Ray worker dies, Ray restarts the task elsewhere, up to `RETRIES` times. Commands must
therefore be idempotent: they give a file its final name only when it is complete. The Ray worker holds the
command's standard input open; when the worker dies, the input closes and the command exits
(`qcore.base.process.lifeline`).

Machines exchange data through files: the package, the cache folder (QCORE_HOME) and the models must have the
same paths on every machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError, RunError, UnavailableError
from qcore.base.executor import AUTO, START, Executor
from qcore.base.home import home

RETRIES = 3
LOOK_SECONDS = 0.1
PASSED_ON = ("QCORE_", "HF_HUB_OFFLINE")  # environment variables (names or prefixes) passed on to commands
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Task:
    """A submitted command."""

    name: str
    reference: Any  # Ray's reference to the exit code


class Cluster:
    """Context manager that connects to the cluster of `engine`. Raise `UnavailableError` if Ray is missing or
    no cluster answers."""

    def __init__(self, engine: Executor):
        self.engine = engine

    def __enter__(self) -> Cluster:
        self.engine.check()
        with _deferred(signal.SIGTERM):
            return self._enter()

    def _enter(self) -> Cluster:
        import ray

        address = self.engine.address or AUTO
        with contextlib.redirect_stdout(None):
            try:
                ray.init(
                    address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
                )
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                first = str(error).strip().partition("\n")[0][:160]
                raise UnavailableError(f"No Ray cluster answers at {address} ({first}). {START}") from error
        self._run = ray.remote(max_retries=RETRIES)(_command())
        return self

    def __exit__(self, *exception) -> None:
        import ray

        ray.shutdown()

    def processors(self, wanted: int | None = None) -> int:
        """Return the number of processors per task: `wanted`, or all processors of the smallest machine, so
        that a machine runs one task at a time. Raise `InputError` if no machine has `wanted` processors."""
        import ray

        counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        counts = [count for count in counts if count > 0]
        if not counts:
            raise UnavailableError("The Ray cluster has no machine with processors.")
        if wanted is not None and wanted > max(counts):
            raise InputError(
                f"{wanted} threads were requested, but no machine of the cluster has more than {max(counts)} "
                "processors."
            )
        return wanted or min(counts)

    def submit(
        self, name: str, command: Sequence[str], log: Path, processors: int, note: Path | None = None
    ) -> Task:
        """Submit `python COMMAND`, with its output appended to `log`. Each start appends a line of JSON to
        the file `note`."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        variables |= {"PYTHONPATH": path, "QCORE_HOME": str(home())}
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(processors))
        run = self._run.options(num_cpus=processors, name=name)
        return Task(name, run.remote(list(command), variables, str(log), str(note) if note else None))

    def ended(self, tasks: Sequence[Task], seconds: float) -> list[Task]:
        """Return the tasks that have ended, after waiting up to `seconds` for the first one."""
        import ray

        by_reference = {task.reference: task for task in tasks}
        until = time.monotonic() + seconds
        while not (done := _ready(ray, list(by_reference))) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)  # not inside Ray: a signal handler that raises breaks its native code
        return [by_reference[reference] for reference in done]

    def code(self, task: Task) -> int:
        """Return the exit code of a command that has ended. Raise `RunError` if its machine was lost more
        than `RETRIES` times."""
        import ray

        try:
            return ray.get(task.reference)
        except ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0][:160]
            raise RunError(
                f"The cluster could not run {task.name} after several attempts: "
                f"{type(error).__name__} ({first})."
            ) from error

    def cancel(self, tasks: Sequence[Task]) -> None:
        """Cancel the tasks that are still running."""
        import ray

        for task in tasks:
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.cancel(task.reference, force=True)


@contextlib.contextmanager
def _deferred(number: int):
    """Defer the signal within the block: Ray's connect breaks if a handler raises, and importing Ray installs
    its own handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, came = signal.getsignal(number), []
    import ray  # noqa: F401

    signal.signal(number, lambda *_: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, before)
        if came:
            signal.raise_signal(number)


def _ready(ray, references: list) -> list:
    try:
        return ray.wait(references, num_returns=1, timeout=0)[0]
    except SystemError as error:  # a signal handler raised inside Ray after all
        raise (error.__cause__ or error) from None


def _command() -> Callable:
    """Return the task function. It is defined inside a function so that Ray pickles it by value and its
    workers need not import this package."""

    def run(command, variables, log, note):
        import json
        import os
        import socket
        import subprocess
        import sys

        if note:
            with open(note, "ab", buffering=0) as file:
                about = {"event": "task", "pid": os.getpid(), "machine": socket.gethostname()}
                file.write(
                    b"\n" + json.dumps(about).encode() + b"\n"
                )  # the previous writer may have left an incomplete line
        with open(log, "ab") as output:
            child = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, **variables},
            )
            try:
                return child.wait()
            finally:
                if child.poll() is None:
                    child.kill()

    return run

"""Commands as Ray tasks: each runs `python COMMAND` in a process of its own on some machine of the cluster,
output into a file.

A task is lost with the machine or the Ray worker that runs it; Ray then starts it again elsewhere, up to
`RETRIES` times, so commands must be such that doing them twice does no harm: theirs write files under final
names only when they are whole. A command's standard input is held open by its Ray worker and closes when that
dies, upon which the command ends itself (`qcore.base.process.lifeline`).

What passes between machines are files: the package, the cache folder (QCORE_HOME) and models must be found
under the same paths everywhere.
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
PASSED_ON = (
    "QCORE_",
    "HF_HUB_OFFLINE",
)  # names of variables, or their beginnings, that commands get from here
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Task:
    """A command that was handed in."""

    name: str
    reference: Any  # Ray's own, of the exit code


class Cluster:
    """Context manager: connected to the cluster of `engine` within it. Raise `UnavailableError` if Ray is
    missing or no cluster answers."""

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
        """Return the processors that one task is given: `wanted`, or all that the smallest machine has, so
        that a machine does one thing at a time. Raise `InputError` if no machine has as many as are
        `wanted`."""
        import ray

        counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        counts = [count for count in counts if count > 0]
        if not counts:
            raise UnavailableError("The Ray cluster has no machine with processors.")
        if wanted is not None and wanted > max(counts):
            raise InputError(
                f"{wanted} threads were asked for, but no machine of the cluster has more than {max(counts)} "
                "processors."
            )
        return wanted or min(counts)

    def submit(
        self, name: str, command: Sequence[str], log: Path, processors: int, note: Path | None = None
    ) -> Task:
        """Hand in `python COMMAND`, with its output appended to `log`. The file `note` gets a line of JSON
        whenever it is started."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        variables |= {"PYTHONPATH": path, "QCORE_HOME": str(home())}
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(processors))
        run = self._run.options(num_cpus=processors, name=name)
        return Task(name, run.remote(list(command), variables, str(log), str(note) if note else None))

    def ended(self, tasks: Sequence[Task], seconds: float) -> list[Task]:
        """Return those of `tasks` that have ended, after waiting up to `seconds` for one to."""
        import ray

        by_reference = {task.reference: task for task in tasks}
        until = time.monotonic() + seconds
        while not (done := _ready(ray, list(by_reference))) and time.monotonic() < until:
            time.sleep(
                LOOK_SECONDS
            )  # not inside of Ray, whose native code does not bear that a signal raises
        return [by_reference[reference] for reference in done]

    def code(self, task: Task) -> int:
        """Return the exit code of a command that has ended. Raise `RunError` if its machine was lost too
        often."""
        import ray

        try:
            return ray.get(task.reference)
        except ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0][:160]
            raise RunError(
                f"The cluster could not carry out {task.name}, however often it tried: "
                f"{type(error).__name__} ({first})."
            ) from error

    def cancel(self, tasks: Sequence[Task]) -> None:
        """End what is under way; what has ended stays."""
        import ray

        for task in tasks:
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.cancel(task.reference, force=True)


@contextlib.contextmanager
def _deferred(number: int):
    """Within it, the signal waits: connecting does not bear that a handler raises, and importing Ray sets a
    handler of its own."""
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
    except SystemError as error:  # a signal's handler raised inside of it after all
        raise (error.__cause__ or error) from None


def _command() -> Callable:
    """Return the task. Made inside a function, so that Ray sends it as it is and its workers need not import
    this package."""

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
                )  # whoever wrote before may have been cut short
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

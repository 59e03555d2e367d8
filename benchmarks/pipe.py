"""A measured program runs in its own process: it loads once, then waits on a pipe for requests to measure.

So only one program computes at a time (the others block in a read), each keeps its threads and its memory,
and alternating between them costs nothing. Each line is one JSON object, in both directions; output of
libraries goes to a log instead.

    {"measure": "q4_0"}  ->  {"rates": {"decode": 113.2, "prefill": 508.9}}          or  {"error": "…"}
"""

import importlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from qcore.base.errors import QcoreError, RunError
from qcore.base.other_work import OtherWork

ROOT = Path(__file__).resolve().parent.parent
# timeout of a silent process in seconds: preparing the largest model takes two minutes on two cores
LONGEST = 900


class Worker:
    """The parent's end: starts `python -m benchmarks.pipe MODULE OPTIONS`, with this interpreter unless
    another is given, and sends it requests. A context manager."""

    def __init__(self, name: str, module: str, options: dict, python: str = sys.executable):
        self.name = name
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.pipe", module, json.dumps(options)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(options["threads"]),
        )
        self._usage = psutil.Process(self._process.pid)
        self._buffer = b""

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        self._process.stdin.close()  # a process that waits for its next request ends by itself
        try:
            self._process.wait(timeout=0 if exception[0] else 15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def ready(self) -> dict:
        """Wait until the process has loaded; return its description of itself."""
        return self._read()["about"]

    def measure(self, item: str) -> tuple[dict[str, float], float]:
        """Return the rates of `item`, and how many processors other programs kept busy meanwhile."""
        others = OtherWork(self._usage)
        self._process.stdin.write(json.dumps({"measure": item}).encode() + b"\n")
        self._process.stdin.flush()
        rates = self._read()["rates"]
        return rates, others.cores()

    def _read(self) -> dict:
        """Return the next line. Raise `RunError` with the end of the log if the process ended, failed, or
        timed out."""
        until = time.monotonic() + LONGEST
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise RunError(f"{self.name} has not answered for {LONGEST // 60} minutes.")
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise RunError(f"{self.name} ended before it answered.{self._tail()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise RunError(f"{self.name}: {answer['error']}{self._tail()}")
        return answer

    def _tail(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()[-15:]
        return "\nThe end of its log:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""


def environment(threads: int) -> dict[str, str]:
    """Return the environment variables of a measured process: the number of threads, and no network. The wait
    policy of threads is left to each library: all of them spin for some milliseconds and then sleep, so that
    an idle process takes no time from the others."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }


def serve(module: str, options: dict) -> None:
    """The child's end: load `benchmarks.peers.<module>`, then answer until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # all later output goes to a log, C code's output included

    def answer(**content) -> None:
        answers.write(json.dumps(content).encode() + b"\n")

    try:
        measure, about = importlib.import_module(f"benchmarks.peers.{module}").load(options)
        answer(about=about)
        for line in sys.stdin:
            answer(rates=measure(json.loads(line)["measure"]))
    except QcoreError as error:
        answer(error=str(error))
        sys.exit(1)
    # Any other exception ends the process with a traceback in its log, which the parent shows.


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))

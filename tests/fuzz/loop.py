"""Run inputs through a parser in a worker process with limits.

A worker may not take more than a second of processor time for an input, allocate more than 256 MB, end, or
raise anything but an error of qcore with one short printable line. A parent without heavy libraries watches:
it writes down the input at which a worker died or hung, and starts another one behind it.

Inputs come in batches of `BATCH`, each from a random stream seeded with the parser's name and the number of
the batch, so an input can be made again.
"""

import base64
import faulthandler
import json
import logging
import mmap
import os
import random
import resource
import select
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BATCH = 1000
SECONDS = 1.0  # of processor time per input
PATIENCE = 15.0  # seconds per input by the clock, on a busy machine, until its worker is killed
BYTES = 256 << 20  # that an input may allocate
LONGEST_MESSAGE = 2000  # characters
_SHOWN = 16384  # bytes of a compressed input that are kept
_WARM_UP = 100
_REPLAY = 3  # seconds of processor time for an input that is tried again
_STATE = struct.Struct("<qd")  # the number of the input within its batch, and when it began


@dataclass
class Finding:
    """An input that broke a limit. `kind` is "crash", "hang", "memory", "exception" or "message"; `where` is
    the same for findings of one cause."""

    kind: str
    where: str
    detail: str
    batch: int
    index: int
    input: str  # compressed, in base64; empty if long


@dataclass
class Outcome:
    """What came of some inputs; `slowest` in seconds of processor time, `grown` in bytes of resident
    memory."""

    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    grown: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Add what came of other inputs; of findings of one cause, keep the first."""
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.seconds += other.seconds
        self.slowest, self.grown = max(self.slowest, other.slowest), max(self.grown, other.grown)
        known = {(each.kind, each.where) for each in self.findings}
        self.findings += [each for each in other.findings if (each.kind, each.where) not in known]


def judge(call, content: bytes) -> tuple[str, str, str] | None:
    """Return (kind, where, detail) if `call` of `content` breaks a limit other than time; None if not.
    `judge.accepted` says whether the input was accepted."""
    from qcore.base.errors import QcoreError

    judge.accepted = False
    try:
        call(content)
        judge.accepted = True
        return None
    except QcoreError as error:
        if _of_memory(error):
            return "memory", _place(error), repr(error)[:300]
        words = str(error)
        if len(words) > LONGEST_MESSAGE or not words.isprintable() or not words:
            return "message", _place(error), f"{len(words)} characters: {words[:300]!a}"
        return None
    except MemoryError as error:
        return "memory", _place(error), repr(error)[:300]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "exception", _place(error), repr(error)[:300]


judge.accepted = False


def _of_memory(error: BaseException | None) -> bool:
    """Return whether an error stands for exhausted memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "/qcore/" in each.filename] or frames
    last = own[-1] if own else None
    place = f"{last.filename.partition('/qcore/')[2]}:{last.name}" if last else "?"
    return f"{type(error).__name__} in {place}"


def run(name: str, first: int, inputs: int, seconds: float) -> Iterator[tuple[int, Outcome]]:
    """Run batches of the parser `name` from the number `first` on, until `inputs` have run or `seconds` have
    passed; yield the number of the next batch, and the outcome of those before it."""
    began, done = time.monotonic(), 0
    while done < inputs and time.monotonic() - began < seconds:
        worker = _Worker(name, first)
        for batch, outcome in worker.batches():
            first, done = batch + 1, done + outcome.inputs
            yield first, outcome
            if done >= inputs or time.monotonic() - began >= seconds:
                worker.end()
                return


class _Worker:
    """A forked process that runs batches from `first` on until it dies."""

    def __init__(self, name: str, first: int):
        self.name, self.batch = name, first
        self.state = mmap.mmap(-1, _STATE.size)
        self.state[:] = _STATE.pack(-1, time.monotonic())
        self.reads, writes = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.reads)
            try:
                _work(name, first, self.state, writes)
            finally:
                os._exit(7)
        os.close(writes)

    def batches(self) -> Iterator[tuple[int, Outcome]]:
        """Yield the number and the outcome of each batch; the last one may be incomplete."""
        buffered = b""
        while True:
            ready = select.select([self.reads], [], [], 0.5)[0]
            if ready:
                piece = os.read(self.reads, 1 << 20)
                if not piece:
                    break
                buffered += piece
                while b"\n" in buffered:
                    line, _, buffered = buffered.partition(b"\n")
                    record = json.loads(line)
                    findings = [Finding(**each) for each in record.pop("findings")]
                    outcome = Outcome(**record, findings=findings)
                    yield self.batch, outcome
                    self.batch += 1
                continue
            index, since = _STATE.unpack(self.state[:])
            if index >= 0 and time.monotonic() - since > PATIENCE:
                os.kill(self.pid, signal.SIGKILL)
                yield self.batch, self._broken("hang", f"no answer within {PATIENCE:g} s")
                self.end()
                return
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        os.close(self.reads)
        if _STATE.unpack(self.state[:])[0] < 0:
            raise RuntimeError(f"the worker for {self.name} ended before its first input (status {status})")
        words = signal.Signals(status & 127).name if status & 127 else f"status {status >> 8}"
        yield self.batch, self._broken("crash", f"the worker ended ({words})")

    def _broken(self, kind: str, detail: str) -> Outcome:
        index = _STATE.unpack(self.state[:])[0]
        content = made(self.name, self.batch, index)
        return Outcome(
            index + 1, findings=[Finding(kind, detail, detail, self.batch, index, _encoded(content))]
        )

    def end(self) -> None:
        """Kill the process."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.reads)
            self.pid = 0


def made(name: str, batch: int, index: int) -> bytes:
    """Return an input again. In a process of its own, because samples may need heavy libraries."""
    reads, writes = os.pipe()
    if not (pid := os.fork()):
        try:
            mutate, _ = opened(name)
            chance = random.Random(f"{name} {batch}")
            for _ in range(index):
                mutate(chance)
            with os.fdopen(writes, "wb") as file:
                file.write(mutate(chance))
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    return content


def opened(name: str):
    """Return the source of inputs and the function of a parser, in a cache folder of their own."""
    from qcore.base.home import home
    from tests.fuzz.parsers import PARSERS, scratch

    os.environ.setdefault("QCORE_KERNELS", str(home() / "kernels"))
    os.environ["QCORE_HOME"] = str(scratch() / "home")
    return PARSERS[name].open(scratch())


def _work(name: str, batch: int, state: mmap.mmap, writes: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.disable()
    sys.setrecursionlimit(1000)
    logging.disable(logging.CRITICAL)
    mutate, call = opened(name)
    chance = random.Random("warm up")
    for _ in range(_WARM_UP):  # what libraries load at the first call is not the input's
        judge(call, mutate(chance))
    while True:
        _limit()
        line = json.dumps(asdict(_run_batch(name, batch, mutate, call, state))) + "\n"
        os.write(writes, line.encode())
        batch += 1


def _run_batch(name: str, batch: int, mutate, call, state: mmap.mmap) -> Outcome:
    outcome, chance = Outcome(), random.Random(f"{name} {batch}")
    size, clock = _resident(), time.process_time
    began = clock()
    for index in range(BATCH):
        content = mutate(chance)
        state[:] = _STATE.pack(index, time.monotonic())
        start = clock()
        problem = judge(call, content)
        took = clock() - start
        outcome.accepted += judge.accepted
        outcome.slowest = max(outcome.slowest, took)
        if problem is None and took > SECONDS:
            problem = "hang", "a second", f"{took:.1f} s of processor time"
        if problem is not None:
            outcome.add(Outcome(findings=[Finding(*problem, batch, index, _encoded(content))]))
    state[:] = _STATE.pack(-1, 0.0)
    outcome.inputs, outcome.seconds, outcome.grown = BATCH, clock() - began, max(0, _resident() - size)
    return outcome


def replay(name: str, findings: list[Finding]) -> list[Finding]:
    """Return those of `findings` that still break a limit; a finding without its input is kept."""
    kept = []
    for finding in findings:
        if not finding.input or _fails(name, zlib.decompress(base64.b64decode(finding.input))):
            kept.append(finding)
    return kept


def _fails(name: str, content: bytes) -> bool:
    if not (pid := os.fork()):
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            mutate, call = opened(name)
            judge(call, mutate(random.Random("warm up")))
            _limit()
            start = time.process_time()
            resource.setrlimit(resource.RLIMIT_CPU, (int(start) + _REPLAY,) * 2)
            status = judge(call, content) is not None or time.process_time() - start > SECONDS
        finally:
            os._exit(int(status))
    return os.waitpid(pid, 0)[1] != 0


def _encoded(content: bytes) -> str:
    packed = zlib.compress(content)
    return base64.b64encode(packed).decode() if len(packed) <= _SHOWN else ""


def _limit() -> None:
    """Let this process map 256 MB more than it does."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard: Any = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, hard))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

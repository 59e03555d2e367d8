"""A function that runs a stranger's program, in a process of its own with limits of time and memory.

    apart(work, seconds, nbytes)     the text that `work()` returns

The process is a fork, so `work` may use everything that is loaded, and what it changes is gone afterwards.
Nothing inside the interpreter could end one long operation of native code, such as a power of large numbers.
"""

import faulthandler
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

_PIECE = 1 << 16


def apart(work: Callable[[], str], seconds: float, nbytes: int) -> str:
    """Return the text that `work()` returns in a forked process.

    Raise `TimeoutError` after `seconds`, `MemoryError` if the process takes more than `nbytes` beyond what it
    begins with, and `RuntimeError` if `work` raises anything or the process dies.
    """
    end = time.monotonic() + seconds
    reads, writes = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if not (pid := os.fork()):
        os.close(reads)
        _run(work, writes, seconds, nbytes)
    os.close(writes)
    try:
        found = bytearray()
        while (left := end - time.monotonic()) > 0 and select.select([reads], [], [], left)[0]:
            piece = os.read(reads, _PIECE)
            if not piece:
                return _text(found)
            found += piece
            if len(found) > nbytes:
                raise MemoryError
        raise TimeoutError
    finally:
        os.close(reads)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # reaped by a handler of this process
            os.waitpid(pid, 0)


def _run(work: Callable[[], str], writes: int, seconds: float, nbytes: int) -> None:
    """Write "=" and the text of `work()`, or "m" if memory does not suffice, and end this process."""
    try:
        faulthandler.disable()
        _limit(seconds, nbytes)
        answer = b"=" + work().encode("utf-8", "surrogatepass")
    except MemoryError:
        answer = b"m"
    except BaseException:
        answer = b""
    try:
        while answer:
            answer = answer[os.write(writes, answer) :]
    finally:
        os._exit(0)


def _limit(seconds: float, nbytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds) + 1,) * 2)
    if sys.platform.startswith("linux"):
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + nbytes, mapped + nbytes))


def _text(found: bytearray) -> str:
    if found[:1] == b"=":
        return found[1:].decode("utf-8", "surrogatepass")
    if found == b"m":
        raise MemoryError
    raise RuntimeError("the process ended without an answer")

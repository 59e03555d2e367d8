"""The processor: its name, the instruction sets that affect kernel speed, and how much of it this process may
use. Imports no heavy library."""

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

from qcore.base import cgroups

FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
FAST_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entry in /proc/cpuinfo, or an empty dictionary if the file is missing."""
    try:
        entry = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in entry.splitlines())
    }


def cpu_name() -> str:
    """Return the processor's model name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine() or "unknown"


def cpu_flags() -> list[str]:
    """Return the instruction sets of this processor that affect kernel speed."""
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in FLAGS if flag in present]


def has_fast_bf16() -> bool:
    """Return whether the processor has instructions for bf16 products. Without such instructions bf16 is
    emulated, about 100 times slower than fp32."""
    return not FAST_BF16.isdisjoint(cpu_flags())


def cores() -> int:
    """Return the number of processors that this process may run on (its affinity)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def capacity() -> float:
    """Return the processors' worth of time that this process may use: its cores, or the quota of its control
    group if that is less."""
    quota = cgroups.cpu_quota()
    return cores() if quota is None else min(quota, cores())


def default_threads() -> int:
    """Return the number of threads that fits `capacity`: its whole processors, at least 1. A thread on part
    of a processor holds up the others (see docs/benchmarks.md)."""
    return max(1, int(capacity()))


def limit_threads() -> None:
    """Lower torch's number of threads to `default_threads`, unless the user has set OMP_NUM_THREADS. Torch
    itself follows the affinity, but not the quota of a control group. Does nothing if torch is not imported.
    """
    torch = sys.modules.get("torch")
    if torch and not os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() > default_threads():
        torch.set_num_threads(default_threads())

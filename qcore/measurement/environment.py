"""Where a number was measured: processor, memory, system, libraries, the code's own commit. Part of every
record.

Looks things up without importing a library that is not already loaded, so that a page can show it at once.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from qcore.base import extensions
from qcore.base.cpu import cpu_flags, cpu_name, has_fast_bf16
from qcore.measurement.memory import available_bytes, total_bytes
from qcore.recipes import ENGINES

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "optimum",
    "datasets",
    "gguf",
    "numpy",
    "streamlit",
)


def environment() -> dict:
    """A JSON-ready dictionary; sizes in bytes, absent things None or left out."""
    torch = sys.modules.get("torch")
    return {
        "cpu": cpu_name(),
        "flags": cpu_flags(),
        "cores": _cores(),
        "threads": torch.get_num_threads() if torch else None,
        "fast_bf16": has_fast_bf16(),
        "memory_total": total_bytes(),
        "memory_available": available_bytes(),
        "os": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libraries": versions(),
        "extensions": extensions.loaded(),
        "commit": commit(),
        "gpu": gpu_name(),
    }


def _cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of the libraries that take part and are installed, those of engines included."""
    found = {}
    engines = [package for info in ENGINES.values() for package in info.install.split()]
    for name in dict.fromkeys((*LIBRARIES, *engines)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit of the checkout this code runs from, with "+changes" if tracked files differ; None outside
    of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def gpu_name() -> str | None:
    """The first GPU's name, or None. Asks torch if that is loaded, the driver otherwise."""
    torch = sys.modules.get("torch")
    if torch:
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


def read_bandwidth(repeats: int = 7) -> float:
    """Bytes a second that all threads together read from memory: the best of several sums over
    `read_buffer()` by each of `readers()`."""
    buffer = read_buffer()
    best = float("inf")
    for _ in range(repeats):
        for read in readers():
            start = time.perf_counter()
            read(buffer)
            best = min(best, time.perf_counter() - start)
    return buffer.nbytes / best


def readers() -> list[Callable]:
    """Ways to read an int64 tensor from end to end. Which is fastest differs from processor to processor; the
    natively compiled one is there where it can be."""
    import torch

    from qcore.kernels import library

    return [torch.sum] if library.reason_missing() else [torch.sum, library.sum_words]


def read_buffer():
    """An int64 tensor that no cache holds: eight times the last-level cache, between 128 MiB and 512 MiB, and
    at most a quarter of what is available. Whole numbers, because their sum is bound by reading alone."""
    import torch

    size = min(max(8 * last_level_cache(), 128 << 20), 512 << 20, available_bytes() // 4)
    return torch.ones(max(size // 8, 1), dtype=torch.int64)


def last_level_cache() -> int:
    """Bytes of the largest cache of a processor; 32 MiB if the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes, default=32 << 20)

"""The environment of a measurement: processor, memory, system, library versions, the code's own commit. Part
of every record.

Lookups import no library that is not already loaded, so that a page can show the environment at once.
"""

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from qcore.base import extensions
from qcore.base.cgroups import cpu_quota
from qcore.base.cpu import cores, cpu_flags, cpu_name, has_fast_bf16
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
    """Return a JSON-ready dictionary; sizes in bytes, absent values None or left out."""
    torch = sys.modules.get("torch")
    return {
        "cpu": cpu_name(),
        "flags": cpu_flags(),
        "cores": cores(),
        "cpu_quota": cpu_quota(),
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


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries that take part, including those of engines."""
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
    """Return the commit of the checkout this code runs from, with "+changes" if tracked files differ; None
    outside of a checkout."""
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
    """Return the first GPU's name, or None. Query torch if it is loaded, the driver otherwise."""
    torch = sys.modules.get("torch")
    if torch:
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


def read_bandwidth(repeats: int = 7) -> float:
    """Return the read bandwidth of all threads together in bytes per second: the best of several sums over
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
    """Return functions that read an int64 tensor from end to end. The fastest one differs between processors;
    the natively compiled one is included if it can be built."""
    import torch

    from qcore.kernels import library

    return [torch.sum] if library.reason_missing() else [torch.sum, library.sum_words]


def read_buffer():
    """Return an int64 tensor too large for any cache: eight times the last-level cache, between 128 MiB and
    512 MiB, and at most a quarter of the available memory. Integers, because summing them is bound by reading
    alone."""
    import torch

    size = min(max(8 * last_level_cache(), 128 << 20), 512 << 20, available_bytes() // 4)
    return torch.ones(max(size // 8, 1), dtype=torch.int64)


def last_level_cache() -> int:
    """Return the bytes of a processor's largest cache; 32 MiB if the system does not report it."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes, default=32 << 20)

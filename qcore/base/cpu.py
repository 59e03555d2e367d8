"""The processor's name and the instruction sets that affect kernel speed. Imports no heavy library."""

import platform
from functools import lru_cache
from pathlib import Path

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

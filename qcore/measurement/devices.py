"""The memory of an accelerator, as torch reports it: cuda, and whatever else `torch.accelerator` knows."""

from __future__ import annotations

import sys


def free_bytes(device: str) -> int:
    """Return the free memory of `device` in bytes. The first call starts torch's runtime on the device, which
    takes some hundred MB there."""
    import torch

    return torch.accelerator.get_memory_info(device)[0]


class DevicePeak:
    """Context manager. After it, `peak_bytes` is the most that torch's tensors took on `device` at once, with
    what they took on entry; None on the CPU, whose memory `PeakMemory` measures."""

    def __init__(self, device: str):
        self._device = device
        self.peak_bytes: int | None = None

    def __enter__(self) -> DevicePeak:
        if self._device != "cpu":
            import torch

            torch.accelerator.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *exception) -> None:
        if self._device != "cpu":
            import torch

            self.peak_bytes = torch.accelerator.max_memory_allocated(self._device)


def out_of_memory(error: BaseException, doing: str = "") -> str | None:
    """Return the sentences for a user about exhausted memory while `doing` (such as " while loading"); None
    for any other error."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return (
            f"There was not enough memory on the device{doing}. Take a smaller model, a smaller window, or "
            "the device cpu."
        )
    if isinstance(error, MemoryError):
        return (
            f"There was not enough memory{doing}. Take a smaller model or a smaller window, or close other "
            "programs."
        )
    return None

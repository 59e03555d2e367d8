"""Memory for packed weights, in huge pages where the system offers them.

A decoding step reads every weight once. With pages of 4 KiB, each megabyte costs 256 page-table walks, and
hardware prefetching stops at every page boundary. With pages of 2 MiB, a whole step of a small model takes a
tenth less time (measured on 2026-11-25; `python benchmarks/speed.py` measures it again).

Most weights are smaller than a huge page, so they are placed one after another in mappings of 64 MiB. A
mapping is released with the last weight in it. Pages that were never written take no memory.
"""

import contextlib
import mmap
import threading

import torch

_PAGE = 2 << 20
_PIECE = 32 * _PAGE  # bytes of address space per mapping
_ALIGNMENT = 64
_lock = threading.Lock()
_piece: mmap.mmap | None = None
_used = 0


def empty(nbytes: int) -> torch.Tensor:
    """Return an uninitialized uint8 tensor (nbytes,) with a storage of its own, in huge pages where
    supported.

    Raise `MemoryError` if the address space is exhausted.
    """
    global _piece, _used
    if not nbytes or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes, dtype=torch.uint8)
    if nbytes > _PIECE // 2:
        return _view(_map(nbytes), 0, nbytes)
    with _lock:
        if _piece is None or _used + nbytes > _PIECE:
            _piece, _used = _map(_PIECE), 0
        piece, start = _piece, _used
        _used = -(-(start + nbytes) // _ALIGNMENT) * _ALIGNMENT
    return _view(piece, start, nbytes)


def _map(nbytes: int) -> mmap.mmap:
    """Map private memory that holds `nbytes` after its first huge-page boundary."""
    try:
        piece = mmap.mmap(-1, nbytes + _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes for packed weights cannot be mapped: {error.strerror}.") from error
    with contextlib.suppress(OSError):  # a kernel without huge pages: ordinary pages work, too
        piece.madvise(mmap.MADV_HUGEPAGE)
    return piece


def _view(piece: mmap.mmap, start: int, nbytes: int) -> torch.Tensor:
    boundary = -torch.frombuffer(piece, dtype=torch.uint8, count=1).data_ptr() % _PAGE
    return torch.frombuffer(piece, dtype=torch.uint8, offset=boundary + start, count=nbytes)

"""Memory for packed weights in huge pages, where the system has them.

A step reads every weight once. In pages of 4 KiB each megabyte costs 256 walks of the page tables, which the
reading waits for, and hardware prefetching stops at each page's end; in pages of 2 MiB a whole step of a
small model is a tenth faster. Weights are often smaller than such a page, so they are laid one behind the
other in large pieces. A piece is given back when no weight in it is left, and only the pages that were
written count.
"""

import contextlib
import mmap
import threading

import torch

_PAGE = 2 << 20
_PIECE = 32 * _PAGE  # of address space: untouched pages take no memory
_ALIGNMENT = 64
_lock = threading.Lock()
_piece: mmap.mmap | None = None
_used = 0


def empty(nbytes: int) -> torch.Tensor:
    """A new uint8 tensor (nbytes,) with a storage of its own; in huge pages on Linux, where they can be asked
    for."""
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
    """Private memory with room for `nbytes` from the first border of a huge page on."""
    piece = mmap.mmap(-1, nbytes + _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: the memory is as good as any other
        piece.madvise(mmap.MADV_HUGEPAGE)
    return piece


def _view(piece: mmap.mmap, start: int, nbytes: int) -> torch.Tensor:
    border = -torch.frombuffer(piece, dtype=torch.uint8, count=1).data_ptr() % _PAGE
    return torch.frombuffer(piece, dtype=torch.uint8, offset=border + start, count=nbytes)

"""Write a safetensors file in pieces, while its next tensors are still being computed.

A separate thread writes and hashes. Tensors that come before their place in the file
(`layout` puts unaligned ones last) wait in memory.
"""

from __future__ import annotations

from pathlib import Path

import torch

from qcore.base.tensor_file import Piece, TensorFile
from qcore.base.write_behind import WriteBehind

_FLUSHED = 64 << 20  # bytes after which write-back is started


class ShardWriter:
    """Call `write` with chunks, in order within each tensor, then `close` or `discard`.

    `pieces` are all tensors of the file, in file order. `write` and `close` raise `OSError` if the disk
    cannot be written.
    """

    def __init__(self, path: Path, pieces: list[Piece]):
        self._file = TensorFile(path, pieces)
        self._pieces = pieces
        self._next = 0  # the piece to be written next
        self._missing = pieces[0].nbytes if pieces else 0
        self._early: dict[str, list[torch.Tensor]] = {}
        self._unflushed = 0
        self._behind = WriteBehind()

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the closed file."""
        return self._file.sha256

    def write(self, name: str, chunk: torch.Tensor) -> None:
        """Append a contiguous `chunk` to the tensor `name`. Block while two chunks wait."""
        if self._next < len(self._pieces) and self._pieces[self._next].name == name:
            self._append(chunk)
            self._catch_up()
        else:
            self._early.setdefault(name, []).append(chunk)

    def close(self) -> str:
        """Flush the file to the disk, give it its final name, and return its SHA-256."""
        try:
            self._behind.close()
            if self._next < len(self._pieces):
                raise ValueError(f"{self._pieces[self._next].name} is shorter than planned")
        except BaseException:
            self.discard()
            raise
        digest = self._file.close()
        assert digest is not None  # the thread writes in the order of the file
        return digest

    def discard(self) -> None:
        """Stop, and remove the file."""
        self._behind.stop()
        self._file.discard()

    def _append(self, chunk: torch.Tensor) -> None:
        self._missing -= chunk.nbytes
        if self._missing < 0:
            raise ValueError(f"{self._pieces[self._next].name} is longer than planned")
        if chunk.nbytes:
            self._behind(self._write, self._pieces[self._next].name, chunk)

    def _catch_up(self) -> None:
        """Advance past complete pieces, and write the chunks that came early."""
        while self._missing == 0 and self._next < len(self._pieces):
            self._next += 1
            if self._next < len(self._pieces):
                piece = self._pieces[self._next]
                self._missing = piece.nbytes
                for chunk in self._early.pop(piece.name, []):
                    self._append(chunk)

    def _write(self, name: str, chunk: torch.Tensor) -> None:
        self._file.write(name, chunk)
        self._unflushed += chunk.nbytes
        if self._unflushed > _FLUSHED:
            self._file.write_back()
            self._unflushed = 0

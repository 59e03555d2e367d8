"""Descriptions of packed weights with wrong numbers, for the native functions: every buffer ends where
readable memory ends, and its true size is always given."""

import ctypes
import random
from typing import Any

import torch

from qcore.kernels import arena, library, packed
from qcore.kernels.packed import PackedWeight
from tests.fuzz.mutate import Bytes
from tests.guarded import guarded
from tests.kernels.kernel_weights import ENOUGH, weight

ROWS, COLUMNS, TOKENS = 11, 512, 3
ALLOWED = (library.OK, library.NO_MEMORY, library.BAD_INDEX, *library._PROBLEMS)


class _Subject:
    """A packed weight with its stored parts."""

    def __init__(self, name: str):
        stored = weight(ENOUGH[name], ROWS, COLUMNS)
        self.packed = PackedWeight.pack(stored)
        self.layout = library.Layout.from_buffer_copy(self.packed.layout)
        self.held = {part: guarded(tensor) for part, tensor in packed._parts(stored).items()}
        groups = packed._groups(stored.format, COLUMNS)
        self.parts = packed._Stored.of(stored.format.bits, groups, self.held)
        self.numbers = bytes(self.layout) + bytes(self.parts)


def opened():
    """Return a source of inputs and the function that passes one to native code."""
    torch.set_num_threads(1)
    arena_empty = arena.empty
    arena.empty = lambda nbytes: guarded(torch.zeros(nbytes, dtype=torch.uint8))  # type: ignore[assignment]
    try:
        subjects = [_Subject(name) for name in sorted(ENOUGH)]
    finally:
        arena.empty = arena_empty
    functions: Any = library.functions()
    size = ctypes.sizeof(library.Layout)
    x, y = guarded(torch.randn(TOKENS, COLUMNS)), guarded(torch.empty(TOKENS, ROWS))
    bias, ids = guarded(torch.randn(ROWS)), guarded(torch.arange(TOKENS))
    out = guarded(torch.empty(TOKENS, COLUMNS))
    mutators = [Bytes([subject.numbers]) for subject in subjects]

    def mutate(chance: random.Random) -> bytes:
        which = chance.randrange(len(subjects))
        whole = size + ctypes.sizeof(subjects[0].parts)
        return bytes([which]) + mutators[which](chance)[:whole].ljust(whole, b"\0")

    def call(content: bytes) -> None:
        subject = subjects[content[0]]
        layout = library.Layout.from_buffer_copy(content, 1)
        parts = type(subject.parts).from_buffer_copy(content, 1 + size)
        for target, sound in ((layout, subject.layout), (parts, subject.parts)):
            for name, kind in target._fields_:
                if kind is library.Buffer:
                    setattr(target, name, getattr(sound, name))
        found = [
            functions.qcore_pack(ctypes.byref(layout), ctypes.byref(parts), 1),
            functions.qcore_unpack(ctypes.byref(layout), ctypes.byref(parts), 1),
            functions.qcore_rows(ctypes.byref(layout), ids.data_ptr(), TOKENS, out.data_ptr(), out.numel()),
        ]
        for mode in range(-1, 5):
            found.append(
                functions.qcore_linear(
                    *(ctypes.byref(layout), x.data_ptr(), x.numel(), bias.data_ptr(), bias.numel()),
                    *(y.data_ptr(), y.numel(), mode, 1),
                )
            )
        assert all(status in ALLOWED for status in found), found

    return mutate, call

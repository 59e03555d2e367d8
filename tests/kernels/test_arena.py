"""Memory for packed weights: tensors are aligned and do not overlap, and unused mappings are released."""

import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.kernels import arena


@given(st.lists(st.integers(0, 300_000), max_size=40))
def test_tensors_are_aligned_and_apart(sizes):
    tensors = [arena.empty(size) for size in sizes]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (size, tensor) in enumerate(zip(sizes, tensors, strict=True)):
        assert (
            tensor.dtype == torch.uint8
            and tensor.shape == (size,)
            and tensor.untyped_storage().nbytes() == size
        )
        assert not size or (tensor.data_ptr() % 64 == 0 and bool((tensor == number).all()))


def test_large_ones_begin_at_a_huge_page():
    big = arena.empty(arena._PIECE)
    big[::4096] = 1
    assert big.data_ptr() % (2 << 20) == 0 and big.numel() == arena._PIECE


def test_memory_is_given_back_with_its_last_tensor(monkeypatch):
    pieces, make = [], arena._map

    def watched(nbytes):
        piece = make(nbytes)
        pieces.append(weakref.ref(piece))
        return piece

    monkeypatch.setattr(arena, "_map", watched)
    monkeypatch.setattr(arena, "_piece", None)
    half = arena._PIECE // 2
    first, second = arena.empty(half), arena.empty(half)
    third = arena.empty(half)  # the next piece
    assert len(pieces) == 2 and pieces[0]() is not None
    del first
    assert pieces[0]() is not None
    del second
    assert pieces[0]() is None and pieces[1]() is not None
    del third


def test_without_huge_pages_it_is_ordinary_memory(monkeypatch):
    monkeypatch.delattr(arena.mmap, "MADV_HUGEPAGE")
    assert arena.empty(1000).shape == (1000,)

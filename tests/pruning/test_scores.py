"""The choice of weights to prune: exact counts, 2:4, and scores by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.formats.packing import packed_width
from qcore.formats.sparse import break_even, compress, expand, sparse_bytes
from qcore.pruning.scores import keep, two_of_four


def weight(rows: int = 6, columns: int = 22, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 10))
def test_two_of_every_four_stay_and_they_are_the_larger(rows, columns, seed):
    score = weight(rows, columns, seed).abs()
    kept = two_of_four(score)
    whole = 4 * (columns // 4)
    groups, chosen = score[:, :whole].unflatten(1, (-1, 4)), kept[:, :whole].unflatten(1, (-1, 4))
    assert (chosen.sum(2) == 2).all() and kept[:, whole:].all()
    least_kept = torch.where(chosen, groups, torch.inf).amin(2)
    most_lost = torch.where(chosen, -torch.inf, groups).amax(2)
    assert (least_kept >= most_lost).all()


@given(st.floats(0.01, 0.99), st.integers(1, 40))
def test_as_many_go_as_were_asked_for(amount, columns):
    matrix, norm = weight(5, columns), torch.rand(columns)
    wanda, magnitude = keep(matrix, norm, "wanda", amount), keep(matrix, None, "magnitude", amount)
    assert (wanda.sum(1) == columns - round(amount * columns)).all()
    assert int(magnitude.sum()) == matrix.numel() - round(amount * matrix.numel())


def test_wanda_spares_small_weights_with_large_inputs():
    matrix = torch.tensor([[1.0, 0.1, 0.5, 0.4]])
    norm = torch.tensor([0.1, 10.0, 1.0, 1.0])
    assert keep(matrix, norm, "wanda", 0.5).tolist() == [[False, True, True, False]]
    assert keep(matrix, norm, "magnitude", 0.5).tolist() == [[True, False, True, False]]
    assert keep(matrix, norm, "2:4", 0.5).tolist() == [[False, True, True, False]]


@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.sampled_from([2, 3, 4, 8, 16, 32]))
def test_sparse_storage_gives_back_every_bit_and_its_size_is_as_predicted(rows, columns, share, bits):
    generator = torch.Generator().manual_seed(rows * columns)
    kept = torch.rand(rows, columns, generator=generator) >= share
    if bits <= 8:
        dense = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)
        empty = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)
    else:
        dense = torch.randn(rows, columns, generator=generator).to(
            torch.float16 if bits == 16 else torch.float32
        )
        empty = torch.zeros(1, 1)
    dense = torch.where(kept, dense, empty.to(dense.dtype))
    mask, values = compress(dense, kept, bits)
    assert torch.equal(expand(mask, values, columns, bits, empty), dense)
    assert mask.nbytes + values.nbytes == sparse_bytes(rows, columns, int(kept.sum()), bits)


@pytest.mark.parametrize("bits", [3, 4, 8, 16, 32])
def test_the_break_even_is_where_sparse_storage_begins_to_be_smaller(bits):
    rows, columns = 64, 4096
    dense = rows * (packed_width(columns, bits) if bits <= 8 else columns * bits // 8)
    for share, smaller in ((break_even(bits) - 0.01, False), (break_even(bits) + 0.01, True)):
        assert (sparse_bytes(rows, columns, round((1 - share) * rows * columns), bits) < dense) == smaller

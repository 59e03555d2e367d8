"""The order of rows in a GGUF file."""

import torch

from qcore.interop.gguf_names import interleaved


def test_pairs_stand_side_by_side_and_products_stay_the_same():
    heads, size, width = 3, 8, 5
    weight = torch.randn(heads * size, width, dtype=torch.float64)
    x, angles = torch.randn(width, dtype=torch.float64), torch.rand(size // 2, dtype=torch.float64)
    halves = (weight @ x).view(heads, 2, size // 2)  # dimension i is rotated with i + size / 2
    pairs = (weight[interleaved(heads * size, heads)] @ x).view(heads, size // 2, 2)  # 2i with 2i + 1
    turn = torch.polar(torch.ones_like(angles), angles)
    one = torch.complex(halves[:, 0], halves[:, 1]) * turn
    other = torch.view_as_complex(pairs.contiguous()) * turn
    torch.testing.assert_close(one, other, rtol=0, atol=0)

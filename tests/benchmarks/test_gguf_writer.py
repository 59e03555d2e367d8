"""The model as llama.cpp reads it: every weight once, and the same products of rotated queries and keys."""

import pytest
import tiny
import torch
from gguf import GGUFReader

from benchmarks import gguf_writer


def test_pairs_stand_side_by_side_and_products_stay_the_same():
    heads, size, width = 3, 8, 5
    weight = torch.randn(heads * size, width, dtype=torch.float64)
    x, angles = torch.randn(width, dtype=torch.float64), torch.rand(size // 2, dtype=torch.float64)
    halves = (weight @ x).view(heads, 2, size // 2)  # dimension i is rotated with i + size / 2
    pairs = (gguf_writer.interleaved(weight, heads) @ x).view(heads, size // 2, 2)  # 2i with 2i + 1
    turn = torch.polar(torch.ones_like(angles), angles)
    one = torch.complex(halves[:, 0], halves[:, 1]) * turn
    other = torch.view_as_complex(pairs.contiguous()) * turn
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_every_weight_is_written_once(tmp_path):
    model = tiny.model("llama")
    gguf_writer.write(model, tmp_path / "tiny.gguf")
    reader = GGUFReader(tmp_path / "tiny.gguf")
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert len(reader.tensors) == len(list(model.state_dict())) - tied
    found = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    torch.testing.assert_close(
        found["blk.1.ffn_down.weight"], model.model.layers[1].mlp.down_proj.weight.detach(), rtol=0, atol=0
    )


def test_other_architectures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="only plain Llama"):
        gguf_writer.write(tiny.model("gpt2"), tmp_path / "no.gguf")

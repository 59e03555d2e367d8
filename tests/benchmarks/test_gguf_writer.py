"""The model as llama.cpp reads it: every weight once, and the same products of rotated queries and keys."""

import pytest
import tiny
import torch
from gguf import GGUFReader

from benchmarks import gguf_writer


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


def test_transposed_layers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="transposed"):
        gguf_writer.write(tiny.model("gpt2"), tmp_path / "no.gguf")

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


def test_each_expert_gives_its_own_rows(tmp_path):
    """The first half of the experts once stood for their gates, and no expert for `up`."""
    model = tiny.model("moe")
    gguf_writer.write(model, tmp_path / "tiny.gguf")
    found = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    fused = model.model.layers[1].mlp.experts.gate_up_proj.detach()
    gate, up = fused.chunk(2, dim=1)
    assert torch.equal(found["blk.1.ffn_gate_exps.weight"].flatten(), gate.flatten())
    assert torch.equal(found["blk.1.ffn_up_exps.weight"].flatten(), up.flatten())

"""How many tokens a model can read."""

import pytest
from transformers import GPT2Config, LlamaConfig, MptConfig, XLNetConfig

from qcore.layers.positions import positions


@pytest.mark.parametrize(
    "config, limit",
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (GPT2Config(n_positions=33), 33),
        (MptConfig(max_seq_len=55), 55),
        (XLNetConfig(), None),  # its class says -1, and at most -2 new tokens could be generated
    ],
)
def test_positions(config, limit):
    assert positions(config) == limit

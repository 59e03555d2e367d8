"""A tiny model and a text for commands."""

import pytest
import tiny


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of tokens, it was the worst of tokens. " * 5)
    return str(path)

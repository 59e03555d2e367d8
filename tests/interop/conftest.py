"""Fixtures of the matrix: checkpoints of its architectures, and the tokens whose logits are compared."""

from pathlib import Path

import pytest
import tiny
import torch
from architectures import make
from matrix import ARCHITECTURES


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Return a function from an architecture to the folder of its checkpoint, each written once."""
    place = tmp_path_factory.mktemp("interop")

    def folder(architecture: str) -> Path:
        path = place / architecture
        if not path.exists():
            make(architecture).save_pretrained(path)
            tiny.tokenizer().save_pretrained(path)
        return path

    return folder


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request) -> str:
    """Each architecture of the matrix."""
    return request.param


@pytest.fixture(scope="session")
def ids() -> list[int]:
    """Tokens whose logits are compared."""
    return torch.randint(0, 256, (48,), generator=torch.Generator().manual_seed(1)).tolist()

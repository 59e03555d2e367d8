"""A zoo: tiny checkpoints of every architecture that transformers registers."""

from tests.zoo.build import build, model, names, wrapped_names

__all__ = ["build", "model", "names", "wrapped_names"]

"""What has to be known to call any causal language model of transformers."""

import inspect

import torch


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's inputs must lie: the device of its first parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def last_only(model: torch.nn.Module) -> dict:
    """The argument that asks a model for the logits of the last position only, as `generate` does; empty if it has none."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

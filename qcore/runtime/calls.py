"""Where a model's inputs belong."""

import torch


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device that the model's inputs must be on: that of its first parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")

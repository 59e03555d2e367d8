"""The device of a model's inputs."""

import torch


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device for the model's inputs: that of its first parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")

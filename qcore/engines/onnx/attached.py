"""A transformers model that runs in ONNX Runtime: its forward runs a session, and its own weights are
removed.

Perplexity, speed, generation and questions therefore use the same code as for every other model. The forward
returns the session's cache, which is valid for the next call only.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.base.torch_internals import put_first_parameter, put_tensor
from qcore.engines.onnx.run_onnx import OnnxModel
from qcore.layers.stand_in import stand_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Head(nn.Module):
    """Placeholder for the output head, which is part of the graph."""


def attach(model: PreTrainedModel, session: OnnxModel) -> PreTrainedModel:
    """Replace the forward of `model` by a run of `session`, and the weights by meta tensors. Return the
    model. `model` may be a meta model."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            hollow = torch.empty_like(parameter, device="meta")
            put_tensor(module, name, nn.Parameter(hollow, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            put_tensor(module, name, torch.empty_like(buffer, device="meta"))
    model.set_output_embeddings(_Head())
    # The first parameter determines the device of inputs and the compute dtype.
    put_first_parameter(model, "onnx", nn.Parameter(torch.empty(0), requires_grad=False))
    stand_in(model, _Forward(session))
    return model.eval()


class _Forward:
    """Replacement of the model's forward; `session` is public for inspection."""

    def __init__(self, session: OnnxModel):
        self.session = session

    def __call__(self, input_ids, cache=None, use_cache=None, logits_to_keep=0):
        """Return the fields of a transformers output that qcore reads: `logits`, float32 (B, n, V), and
        `cache`. Raise `InputError` if `logits_to_keep` requests anything but all or the last positions."""
        tokens = input_ids.shape[1]
        if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep > tokens:
            raise InputError(
                "A model that runs in ONNX Runtime returns the logits of all positions or of the last ones."
            )
        at = torch.arange(tokens - (logits_to_keep or tokens), tokens)
        logits, cache = self.session.step(input_ids.numpy(), cache, at.numpy())
        return SimpleNamespace(logits=torch.from_numpy(logits), cache=cache if use_cache else None)

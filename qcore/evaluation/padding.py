"""Whether sequences of different lengths can be decoded together, padded on the left.

Most models mask the padding completely. Others let it change the result: those that derive positions from the
padding token (RoBERTa and its kin), and those whose state or compressed keys begin at the first column of
the batch. A trial tells them apart: the last logits of a short sequence, alone and padded.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from qcore.runtime import Context
from qcore.runtime.calls import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS, _PADDING = 9, 7
# Relative differences of logits, measured 2026-11 with transformers 5.24 on 20 architectures of tests/zoo:
# at most 2e-5 in float32 and 0.011 in bfloat16 where padding is masked, at least 0.026 where it is not.
_BOUND, _BOUND_16_BIT = 0.005, 0.02


@torch.no_grad()
def is_neutral(model: PreTrainedModel) -> bool:
    """Return whether left padding, masked and left out of the positions, leaves the logits of `model` as they
    are without it."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    device = device_of(model)
    ids = torch.arange(2, 2 + _TOKENS, device=device)[None] % model.config.get_text_config().vocab_size
    padded = torch.cat((torch.zeros_like(ids[:, :_PADDING]), ids), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :_PADDING] = 0
    alone, together = Context(model), Context(model)
    prompt, last = ids.split([_TOKENS - 1, 1], dim=1)
    alone.append(prompt)
    if not alone.keeps:
        return False
    together.append(padded[:, :-1], mask[:, :-1])
    expected = alone.append(last)  # one token through the cache, as in decoding
    found = together.append(last, mask)
    spread = (expected - expected.float().mean()).float().norm()
    bound = _BOUND if expected.dtype == torch.float32 else _BOUND_16_BIT
    return bool((found.float() - expected.float()).norm() <= bound * spread)

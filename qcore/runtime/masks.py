"""Whether a mask is one that the native step applies: causal, within each layer's window, after left
padding.

`generate` and evaluation pass (sequences, slots) or nothing. Wrappers around a text model prepare masks (1 or
sequences, 1, tokens, slots) for each kind of layers. Those are compared with what the decoder would compute,
so that any other mask is left to the modules.
"""

from typing import Literal

import torch

Starts = torch.Tensor | Literal[False] | None  # padding slots of each sequence (sequences,); None for none


def padding_of(mask, position_ids, shape: torch.Size, past: int, windows: dict) -> Starts:
    """Return how many slots of each sequence are padding, for a call of `shape` (sequences, tokens) after
    `past` slots; False if mask or positions describe anything else. `windows` are those of each kind of
    layers."""
    sequences, total = shape[0], past + shape[1]
    starts: Starts = None
    if isinstance(mask, dict):
        starts = _of_kinds(mask, shape, past, windows)
    elif isinstance(mask, torch.Tensor) and mask.ndim == 4:
        starts = _of_kinds(dict.fromkeys(windows, mask), shape, past, windows)
    elif mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.shape != (sequences, total):
            return False
        kept = mask != 0
        if not kept.all():
            starts = (~kept).sum(1)
            if not torch.equal(kept, torch.arange(total) >= starts[:, None]):
                return False
    if starts is not False and position_ids is not None:
        expected = torch.arange(past, total)[None] - (0 if starts is None else starts[:, None])
        if not ((position_ids == expected) | (expected < 0)).all():  # positions of padding do not matter
            return False
    return starts


def _of_kinds(masks: dict, shape: torch.Size, past: int, windows: dict) -> Starts:
    """Return the padding that masks of all kinds of layers describe, the kinds without a window first."""
    starts: torch.Tensor | None = None
    given = {kind: masks.get(kind) for kind in sorted(windows, key=lambda kind: windows[kind] > 0)}
    if all(mask is None for mask in given.values()):
        return None
    for index, (kind, mask) in enumerate(given.items()):
        if mask is None:  # transformers leaves out masks that only say that attention is causal
            continue
        allowed = _allowed(mask, shape, past + shape[1])
        if allowed is None:
            return False
        if index == 0:
            if windows[kind] and windows[kind] < past + shape[1]:
                return False  # the window hides where padding ends
            starts = allowed[:, -1].int().argmax(1)
        if not _is_as_computed(allowed, starts, past, windows[kind]):
            return False
    return starts if starts is not None and starts.any() else None


def _allowed(mask: torch.Tensor, shape: torch.Size, total: int) -> torch.Tensor | None:
    """Return which slots tokens attend to (1 or sequences, tokens, slots); None if the mask is another."""
    fits = isinstance(mask, torch.Tensor) and mask.device.type == "cpu" and mask.ndim == 4
    if not fits or mask.shape[0] not in (1, shape[0]) or mask.shape[1:] != (1, shape[1], total):
        return None
    if mask.dtype == torch.bool:
        return mask[:, 0]
    allowed = mask[:, 0] == 0
    hides = (mask[:, 0] <= torch.finfo(mask.dtype).min / 2) if mask.is_floating_point() else allowed
    return allowed if torch.equal(allowed, ~hides) else None


def _is_as_computed(allowed: torch.Tensor, starts: Starts, past: int, window: int) -> bool:
    """Return whether tokens, but for padding, attend to all slots from `starts` on that come before them and
    lie in the window."""
    tokens, total = allowed.shape[1:]
    slots, own = torch.arange(total), torch.arange(past, past + tokens)[:, None]
    expected = slots <= own
    if window:
        expected &= slots > own - window
    if not isinstance(starts, torch.Tensor):
        return bool((allowed == expected).all())
    first = starts[:, None, None]
    return bool(((allowed == (expected & (slots >= first))) | (own < first)).all())

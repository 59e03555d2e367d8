"""The key-value cache of the native step, also a cache of transformers, so that `generate` can carry it.

A layer keeps its keys and values as the native step reads them (see decoder.h): tensors (sequences, key-value
heads, capacity x head size). Growing doubles the capacity. Grouped-query heads are stored once.
The modules can use the same cache: `update` then takes and returns tensors (sequences, key-value heads,
tokens, head size), so a sequence may change between the two at any step.
"""

from typing import Any, cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from qcore.kernels import library
from qcore.runtime.blocks import held_heads
from qcore.runtime.description import HeldHeads

_BLOCK = 8  # slots side by side
_LEAST = 256  # slots


class NativeLayer(CacheLayerMixin):
    """Keys and values of one layer, as `held` says."""

    is_croppable = True

    def __init__(self, held: HeldHeads, dtype: torch.dtype):
        self.is_initialized = False
        self.held, self.dtype, self.is_sliding = held, dtype, held.window > 0
        self.length, self.capacity = 0, 0
        self.data: tuple[torch.Tensor, torch.Tensor] | None = None

    def reserve(self, sequences: int, capacity: int) -> None:
        """Make room for `capacity` tokens; held tokens are kept."""
        if capacity <= self.capacity:
            return
        grown = max(_LEAST, 2 * self.capacity, -(-capacity // _BLOCK) * _BLOCK)
        sizes = self.held.size, self.held.value_size
        data = tuple(
            torch.zeros(sequences, self.held.heads, grown * size, dtype=self.dtype) for size in sizes
        )
        for new, old in zip(data, self.data or (), strict=False):
            new[..., : old.shape[-1]] = old
        self.data, self.capacity, self.is_initialized = (data[0], data[1]), grown, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.reserve(key_states.shape[0], key_states.shape[2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (sequences, heads, tokens, head size) as modules compute them.

        Return all held ones, in the same type."""
        end = self.length + key_states.shape[2]
        self.reserve(key_states.shape[0], end)
        keys, values = self._views()
        slots = torch.arange(self.length, end)
        if self.held.is_latent:  # keys are the latent and its rotated part, values the latent
            key_states, value_states = torch.cat((key_states, value_states), -1), key_states
        key_heads, value_heads = (part[:, :: self.held.copies] for part in (key_states, value_states))
        keys[:, :, slots // _BLOCK, :, slots % _BLOCK] = key_heads.permute(2, 0, 1, 3).to(self.dtype)
        values[:, :, self.length : end] = value_heads.to(self.dtype)
        self.length = end
        all_keys, all_values = self._held()
        return all_keys.to(key_states.dtype), all_values.to(value_states.dtype)

    @property
    def keys(self) -> torch.Tensor | None:  # type: ignore[override]  # read-only: `data` holds them
        """Return a copy of the held keys (sequences, heads, tokens, head size) as modules compute them; None
        before the first."""
        return None if self.data is None else self._held()[0]

    @property
    def values(self) -> torch.Tensor | None:  # type: ignore[override]
        """Return the held values (sequences, heads, tokens, head size); None before the first."""
        return None if self.data is None else self._held()[1]

    def _held(self) -> tuple[torch.Tensor, torch.Tensor]:
        stored_keys, stored_values = self._views()
        keys = stored_keys.transpose(3, 4).flatten(2, 3)[:, :, : self.length]
        values = stored_values[:, :, : self.length]
        if self.held.is_latent:
            return values, keys[..., self.held.value_size :]
        if self.held.copies == 1:
            return keys, values
        return keys.repeat_interleave(self.held.copies, 1), values.repeat_interleave(self.held.copies, 1)

    @property
    def nbytes(self) -> int:
        """Return the bytes reserved for keys and values."""
        return 0 if self.data is None else sum(part.nbytes for part in self.data)

    def buffers(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return address and bytes of the keys, and of the values."""
        found: list[tuple[int, int]] = []
        for part in self.data or ():
            address, nbytes = library.buffer(part, self.dtype)
            assert address is not None
            found.append((address, nbytes))
        keys, values = found
        return keys, values

    def _views(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.data is not None
        keys, values = self.data
        return (
            keys.unflatten(-1, (-1, self.held.size, _BLOCK)),
            values.unflatten(-1, (-1, self.held.value_size)),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the mask's length and offset 0: all slots are held, whatever the window."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.length, self.capacity, self.data, self.is_initialized = 0, 0, None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens. Their number is negative, as transformers requires. Raise `ValueError` for
        a positive number."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"`crop` got {tokens_to_remove}, but it takes the number of tokens to remove as a negative "
                "number."
            )
        self.length = max(0, self.length + tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.data is not None:
            self.data = self.data[0][indices].contiguous(), self.data[1][indices].contiguous()

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.data is not None:
            keys, values = self.data
            self.data = keys.repeat_interleave(repeats, dim=0), values.repeat_interleave(repeats, dim=0)


class NativeLayers(list[Any]):
    """The layers of one cache, read and filled by the native step: a `NativeLayer`, or transformers' stand-in
    for a layer that reads the keys and values of another."""

    @classmethod
    def of(cls, model: torch.nn.Module, half: bool = False) -> "NativeLayers":
        """Return empty layers for `model`, of a family that the native step knows, in float16 if `half`."""
        dtype = torch.float16 if half else torch.float32
        return cls(
            NativeLayer(held, dtype) if held.source == index else DummyLayer()
            for index, held in enumerate(held_heads(model))
        )

    @property
    def _own(self) -> list[NativeLayer]:
        return [layer for layer in self if isinstance(layer, NativeLayer)]

    half = property(lambda self: int(self[0].dtype == torch.float16))
    capacity = property(lambda self: self[0].capacity)
    length = property(lambda self: self[0].length)
    sequences = property(lambda self: None if self[0].data is None else self[0].data[0].shape[0])

    def are_level(self) -> bool:
        """Return whether all layers hold the same number of tokens. A step that failed midway leaves them
        unequal."""
        return len({layer.length for layer in self._own}) == 1

    def reserve(self, sequences: int, capacity: int) -> None:
        """Make room for `capacity` tokens of each of `sequences` sequences."""
        for layer in self._own:
            layer.reserve(sequences, capacity)

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as held."""
        for layer in self._own:
            layer.length += tokens

    def buffers(self) -> tuple[list[int], list[int]]:
        """Return address and bytes of each layer's keys, in order, and the same for its values; zeros for a
        layer that has none."""
        keys: list[int] = []
        values: list[int] = []
        for layer in self:
            of_keys, of_values = layer.buffers() if isinstance(layer, NativeLayer) else ((0, 0), (0, 0))
            keys += of_keys
            values += of_values
        return keys, values


class NativeCache(Cache):
    """Return an empty cache of native layers for `model`. With `half`, keys and values are kept in float16:
    half the bytes, but tokens may differ from those of float32. Pass it to `generate` as `cache=`."""

    def __init__(self, model: torch.nn.Module, *, half: bool = False):
        super().__init__(layers=cast(list, NativeLayers.of(model, half)))


class Scratch:
    """Stands in for `NativeLayers` in a call that keeps nothing: every layer overwrites the one before, but
    for those that later layers read."""

    half, length = 0, 0

    def __init__(self, model: torch.nn.Module, sequences: int, capacity: int):
        held = held_heads(model)
        read_later = {each.source for index, each in enumerate(held) if each.source != index}
        largest = max(held, key=lambda each: each.heads * (each.size + each.value_size))
        common = NativeLayer(largest, torch.float32)
        made = {source: NativeLayer(held[source], torch.float32) for source in read_later}
        for layer in (common, *made.values()):
            layer.reserve(sequences, capacity)
        self._layers = [made.get(index, common) for index in range(len(held))]
        self.capacity = common.capacity

    def reserve(self, sequences: int, capacity: int) -> None:
        """Do nothing: the buffer has room for the whole call."""

    def advance(self, tokens: int) -> None:
        """Do nothing: no tokens are held after the call."""

    def buffers(self) -> tuple[list[int], list[int]]:
        """Return addresses and bytes as `NativeLayers` does."""
        both = [layer.buffers() for layer in self._layers]
        keys = [number for of_keys, _ in both for number in of_keys]
        return keys, [number for _, of_values in both for number in of_values]

"""A model's weights as the native step reads them: pointers to the modules' own tensors, without copies.

Each layer is computed as in its module (same kernels, same activation precision), the small operations
between them in float32, so the native step and the modules generate the same tokens. Attention over latents
is computed in another order: in each step, modules make the keys and values of all held tokens anew, and the
native step multiplies queries and results instead, by a float32 copy of the same matrices.
"""

import ctypes
from typing import Any

import torch
from torch import nn

from qcore.kernels import dispatch, library
from qcore.kernels.dispatch import MODES
from qcore.kernels.library import Layout
from qcore.kernels.mixture import NORMS
from qcore.kernels.packed import PANEL, PackedWeight
from qcore.layers.modules import QuantizedModule
from qcore.runtime import blocks, structures
from qcore.runtime.description import (
    Attention,
    Block,
    Description,
    FeedForward,
    Latent,
    Norm,
    Rotation,
    Rows,
    TokenPart,
    Unsupported,
)
from qcore.runtime.mixtures import Experts

CHUNK = (
    1024  # tokens that go through a layer at a time: the buffers of a native call are sized for this number
)


def supports(model: nn.Module) -> str | None:
    """Return None if the native step can run `model`, else one sentence on why its modules run instead."""
    found = _read(model)
    return found if isinstance(found, str) else None


def _read(model: nn.Module) -> Description | str:
    if blocks.family_of(model) is not None and (reason := library.reason_without("qcore_decode")):
        return reason
    try:
        return blocks.describe(model)
    except Unsupported as error:
        return str(error)


class Weights:
    """The native description of a model whose parts are `found`."""

    def __init__(self, found: Description):
        self._keep: list[Any] = []  # keeps alive what the native side points to
        self._description = found
        self.windows, self.input_scale = found.windows, found.input_scale
        self.skips_padding = found.skips_padding
        self._rotations: list[tuple[torch.Tensor, ...]] = []
        self._is_long: list[bool] | None = None
        self._stored_rotations: ctypes.Array = (structures.Rotation * 0)()
        self.layers, self.vocabulary = len(found.blocks), found.head.out_features
        embedding = self._projection(_all_rows(found.embedding))
        token_rows = self._optional(None if found.token_rows is None else _all_rows(found.token_rows))
        self.hidden, self.tokens = embedding.columns, min(embedding.rows, token_rows.rows or embedding.rows)
        self.has_token_rows = token_rows.rows > 0
        # whether the last layers only read keys and values of earlier ones: the last token needs no others
        self.narrows = found.blocks[-1].attention.source != self.layers - 1
        self._blocks = (structures.Block * self.layers)(*map(self._block, found.blocks))
        self._model = structures.Model(
            layers=self.layers,
            hidden=self.hidden,
            vocabulary=self.vocabulary,
            embedding_scale=found.embedding_scale * found.input_scale,
            logits_scale=found.logits_scale,
            logits_cap=found.logits_cap,
            final_norm=self._norm(found.final_norm, self.hidden),
            embedding=embedding,
            head=self._projection(_all_rows(found.head)),
            positions=self._optional(None if found.positions is None else _all_rows(found.positions)),
            position_offset=found.position_offset,
            token_rows=token_rows,
            token_scale=found.token_scale,
            blocks=(ctypes.addressof(self._blocks), ctypes.sizeof(self._blocks)),
        )

    def run(
        self,
        ids: torch.Tensor,
        layers,
        starts: torch.Tensor | None = None,
        *,
        counts_padding: bool = False,
        embeds: torch.Tensor | None = None,
        token_rows: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        logits: torch.Tensor | None = None,
    ) -> None:
        """Append the tokens `ids` (sequences, tokens) int64 to a cache's `NativeLayers` (or `Scratch`), which
        must have room for them.

        `starts` (sequences,) int64 is the number of padding slots of each sequence, which positions leave out
        unless they count padding. `embeds` (sequences, tokens, hidden) takes the place of the embedding's
        rows, already scaled, and `token_rows` (sequences, tokens, columns) that of a table of per-layer
        embeddings. Fill `hidden` (sequences, tokens, hidden) with the inputs of the head; or, for one
        sequence, `hidden` (1, 1, hidden) or `logits` (vocabulary,) with those of the last token.

        Raise `MemoryError` if buffers for CHUNK tokens do not fit.
        """
        sequences, tokens = ids.shape
        position = layers.length
        end = position + tokens
        left_out = 0 if starts is None or counts_padding else int(starts.min())
        self.rotations(end, end - left_out)
        rotations = self._stored_rotations
        keys, values = ((ctypes.c_int64 * len(numbers))(*numbers) for numbers in layers.buffers())
        best = ctypes.c_int64()
        stored = structures.Cache(
            (ctypes.addressof(keys), ctypes.sizeof(keys)),
            (ctypes.addressof(values), ctypes.sizeof(values)),
            layers.capacity,
            layers.half,
        )
        call = structures.Call(
            sequences,
            tokens,
            position,
            torch.get_num_threads(),
            CHUNK,
            library.buffer(starts, torch.int64),
            library.buffer(ids, torch.int64),
            (ctypes.addressof(rotations), ctypes.sizeof(rotations)),
            counts_padding,
            library.buffer(embeds, torch.float32),
            library.buffer(token_rows, torch.float32),
            hidden is not None and hidden.shape[1] < tokens,
            library.buffer(hidden, torch.float32),
            library.buffer(logits, torch.float32),
            ctypes.addressof(best),
        )
        status = library.functions().qcore_decode(
            ctypes.byref(self._model), ctypes.byref(stored), ctypes.byref(call)
        )
        library.check(
            status, f"The native step cannot run {sequences} x {tokens} tokens at position {position}"
        )
        layers.advance(tokens)

    def rotations(self, slots: int, positions: int = 0) -> list[tuple[torch.Tensor, ...]]:
        """Return cosines and sines (at least `slots`, rotated dimensions / 2) for each kind of layers, for a
        call whose tokens have fewer than `positions` positions, and factors of queries (at least `slots`,) if
        there are any. Angles come from the model itself, which applies its own scaling."""
        kinds = self._description.rotations
        is_long = [each.short is not None and positions > each.short for each in kinds]
        if kinds and (is_long != self._is_long or len(self._rotations[0][0]) < slots):
            count, self._is_long = max(256, 1 << (slots - 1).bit_length()), is_long
            tables: list[tuple[torch.Tensor, ...]] = []
            for kind, long in zip(kinds, is_long, strict=True):
                growing = torch.log1p(torch.arange(count) // kind.period)
                scales = (1 + kind.growth * growing,) if kind.growth else ()
                tables.append(self._rotation(kind, long, count) + scales)
            self.set_rotations(tables)
        return self._rotations

    def _rotation(self, rotation: Rotation, is_long: bool, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        options = () if rotation.kind is None else (rotation.kind,)
        positions = torch.arange(count)
        if rotation.short is not None:  # the largest position decides over all angles
            positions = torch.arange(max(count, rotation.short + 1))
            if not is_long:
                positions.clamp_(max=rotation.short - 1)
        with torch.no_grad():
            both = self._description.rotary(torch.empty(1, 1), positions[None], *options)
        cosines, sines = (part[0] for part in both)
        # both dimensions of a pair have the same angle, and either they or the halves lie side by side
        if self._description.interleaved and torch.equal(cosines[:, ::2], cosines[:, 1::2]):
            return cosines[:, ::2].contiguous(), sines[:, ::2].contiguous()
        half = cosines.shape[1] // 2
        if not torch.equal(cosines[:, :half], cosines[:, half:]):  # one angle per pair, not both
            return cosines.contiguous(), sines.contiguous()
        return cosines[:, :half].contiguous(), sines[:, :half].contiguous()

    def set_rotations(self, tables: list[tuple[torch.Tensor, ...]]) -> None:
        """Let the next calls read these cosines, sines and factors."""
        self._rotations = tables
        self._stored_rotations = (structures.Rotation * len(tables))(
            *(
                structures.Rotation(
                    library.buffer(cosines, torch.float32),
                    library.buffer(sines, torch.float32),
                    library.buffer(scales[0] if scales else None, torch.float32),
                    2 * cosines.shape[1],
                    self._description.interleaved,
                )
                for cosines, sines, *scales in tables
            )
        )

    def _buffer(self, tensor: torch.Tensor | None) -> tuple[int | None, int]:
        self._keep.append(tensor)
        return library.buffer(tensor, torch.float32)

    def _projection(self, rows: Rows) -> structures.Projection:
        module, count = rows.module, rows.last - rows.first
        bias = getattr(module, "bias", None)
        stored_bias = self._buffer(None if bias is None else bias[rows.first : rows.last])
        if not isinstance(module, QuantizedModule):
            dense = self._buffer(module.weight)
            return structures.Projection(None, dense, stored_bias, count, module.weight.shape[1], 0)
        packed = module.executable()
        assert isinstance(packed, PackedWeight)  # guaranteed by `supports`
        self._keep.append(packed)
        layout = packed.layout if count == packed.shape[0] else _part(packed.layout, rows)
        mode = MODES[getattr(module, "activations", "fp32")]
        return structures.Projection(
            ctypes.pointer(layout), (None, 0), stored_bias, count, packed.shape[1], mode
        )

    def _optional(self, rows: Rows | None) -> structures.Projection:
        return structures.Projection() if rows is None else self._projection(rows)

    def _norm(self, norm: Norm | None, width: int) -> structures.Norm:
        """Describe a norm; without weights of its own, over `width` values."""
        if norm is None:
            return structures.Norm()
        if norm.each:
            each = (library.Buffer * len(norm.each))(
                *(library.Buffer(*self._buffer(one)) for one in norm.each)
            )
            self._keep.append(each)
            stored = (ctypes.addressof(each), ctypes.sizeof(each))
            return structures.Norm(
                NORMS[norm.kind], norm.epsilon, norm.offset, width, len(norm.each), each=stored
            )
        weight = torch.ones(width) if norm.weight is None else norm.weight
        return structures.Norm(
            NORMS[norm.kind],
            norm.epsilon,
            norm.offset,
            weight.shape[-1],
            weight.numel() // weight.shape[-1],
            self._buffer(weight),
            self._buffer(norm.bias),
        )

    def _block(self, block: Block) -> structures.Block:
        return structures.Block(
            before_attention=self._norm(block.before_attention, self.hidden),
            after_attention=self._norm(block.after_attention, self.hidden),
            before_feed_forward=self._norm(block.before_feed_forward, self.hidden),
            after_feed_forward=self._norm(block.after_feed_forward, self.hidden),
            parallel=block.parallel,
            residual=block.residual,
            attention=self._attention(block.attention),
            feed_forward=self._feed_forward(block.feed_forward),
            beside=(None, 0) if block.beside is None else self._mixture(block.beside),
            after_dense=self._norm(block.after_dense, self.hidden),
            after_beside=self._norm(block.after_beside, self.hidden),
            token=structures.TokenPart() if block.token is None else self._token_part(block.token),
            scale=self._buffer(block.scale),
        )

    def _token_part(self, part: TokenPart) -> structures.TokenPart:
        gate = self._projection(part.gate)
        return structures.TokenPart(
            gate=gate,
            mix=self._projection(part.mix),
            down=self._projection(part.down),
            activation=part.function,
            first=part.first,
            norm=self._norm(part.norm, gate.rows),
            after=self._norm(part.after, self.hidden),
            scale=part.scale,
        )

    def _attention(self, attention: Attention) -> structures.Attention:
        inputs = (structures.Projection * structures.INPUTS)(*map(self._projection, attention.inputs))
        return structures.Attention(
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            head_size=attention.head_size,
            value_size=attention.value_size,
            inputs=inputs,
            input_count=len(attention.inputs),
            queries=attention.queries,
            keys=attention.keys,
            values=attention.values,
            query_norm=self._norm(attention.query_norm, attention.head_size),
            key_norm=self._norm(attention.key_norm, attention.head_size),
            value_norm=self._norm(attention.value_norm, attention.value_size),
            norm_last=attention.norm_last,
            rotation=-1 if attention.rotation is None else attention.rotation,
            scale=attention.scale,
            cap=attention.cap,
            window=attention.window,
            source=attention.source,
            sinks=self._buffer(attention.sinks),
            output=self._projection(attention.output),
            latent=structures.Latent() if attention.latent is None else self._latent(attention.latent),
        )

    def _latent(self, latent: Latent) -> structures.Latent:
        queries = self._optional(latent.queries)
        packed = latent.up.executable()
        return structures.Latent(
            rank=latent.rank,
            plain=latent.plain,
            rotated=latent.rotated,
            values=latent.values,
            norm=self._norm(latent.norm, latent.rank),
            query_norm=self._norm(latent.query_norm, queries.columns),
            queries=queries,
            matrices=self._buffer(dispatch.rows(packed, torch.arange(packed.shape[0]))),
        )

    def _feed_forward(self, part: FeedForward | Experts) -> structures.FeedForward:
        if isinstance(part, Experts):
            return structures.FeedForward(kind=structures.MIXTURE, mixture=self._mixture(part))
        gate = self._projection(part.gate)
        return structures.FeedForward(
            kind=structures.DENSE,
            activation=part.function,
            gated=part.up is not None,
            inner=gate.rows,
            gate=gate,
            up=self._optional(part.up),
            down=self._projection(part.down),
        )

    def _mixture(self, part: Experts) -> tuple[int, int]:
        mixture = part.matrices()
        self._keep.append(mixture)
        return ctypes.addressof(mixture.layer), ctypes.sizeof(mixture.layer)


def read(model: nn.Module) -> Weights | None:
    """Return the native description of `model`; None if its modules run instead."""
    found = _read(model)
    return None if isinstance(found, str) else Weights(found)


def _all_rows(module: Any) -> Rows:
    rows = module.shape[0] if isinstance(module, QuantizedModule) else module.weight.shape[0]
    return Rows(module, 0, rows)


def _part(layout: Layout, rows: Rows) -> Layout:
    """Describe the panels that hold `rows`, of which the first begins a panel."""
    part = Layout.from_buffer_copy(layout)
    begin, end = rows.first // PANEL * layout.panel_bytes, -(-rows.last // PANEL) * layout.panel_bytes
    part.rows, part.panels = rows.last - rows.first, (layout.panels.data + begin, end - begin)
    return part

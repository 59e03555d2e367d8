"""A model's weights as the native step reads them: pointers to the modules' own tensors, without copies.

Each layer is computed as in its module (same kernels, same activation precision), the small operations
between them in float32, so the native step and the modules generate the same tokens.
"""

import ctypes
from typing import Any

import torch
from torch import nn

from qcore.kernels import library
from qcore.kernels.dispatch import MODES
from qcore.kernels.library import Buffer, Layout
from qcore.kernels.packed import PackedWeight
from qcore.layers.modules import QuantEmbedding, QuantizedModule, QuantLinear

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose angles depend on the position alone
ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}  # whether it is gelu
CHUNK = (
    1024  # tokens that go through a layer at a time: the buffers of a native call are sized for this number
)
_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


class _Projection(ctypes.Structure):
    _fields_ = [
        ("packed", ctypes.POINTER(Layout)),
        ("dense", Buffer),
        ("bias", Buffer),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("mode", ctypes.c_int32),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, Buffer) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, _Projection) for name in _PROJECTIONS),
        ("window", ctypes.c_int64),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_size", "inner", "vocabulary")
        ),
        *(
            (name, ctypes.c_float)
            for name in ("epsilon", "attention_scale", "embedding_scale", "norm_offset")
        ),
        ("gelu", ctypes.c_int64),
        ("final_norm", Buffer),
        ("embedding", _Projection),
        ("head", _Projection),
        ("blocks", Buffer),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [("keys", Buffer), ("values", Buffer), ("capacity", ctypes.c_int64), ("half", ctypes.c_int64)]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("sequences", "tokens", "position", "threads", "chunk")),
        *((name, Buffer) for name in ("starts", "ids", "cosines", "sines", "hidden", "logits")),
        ("best", ctypes.c_void_p),
    ]


def supports(model: nn.Module) -> str | None:
    """Return None if the native step can run `model`, else one sentence on why its modules run instead."""
    if type(model).__name__ not in ARCHITECTURES:
        return (
            f"The decoder knows Llama, Mistral, Qwen2, Qwen3 and Gemma, and this is {type(model).__name__}."
        )
    if reason := library.reason_without("qcore_decode"):
        return reason
    config: Any = model.config
    stack: Any = model.model
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        return f"The decoder does not know the position encoding {rope!r}."
    if config.hidden_act not in ACTIVATIONS:
        return (
            f"The decoder knows the activation functions {' and '.join(ACTIVATIONS)}, and this "
            f"model uses {config.hidden_act}."
        )
    for block in stack.layers:
        for name, module in _projections(block).items():
            if not isinstance(module, QuantLinear):
                return (
                    f"The decoder needs quantized layers, and {name}_proj of a block is "
                    f"{type(module).__name__}."
                )
            if module.reason_for_reference():
                return (
                    "The decoder needs weights that native kernels can hold, such as groups of 32, 64 or 128."
                )
    if _head_size(stack) % 8:
        return f"The decoder needs heads of a multiple of 8 dimensions, and these have {_head_size(stack)}."
    ends: tuple[tuple[Any, Any], ...] = (
        (stack.embed_tokens, (nn.Embedding, QuantEmbedding)),
        (model.lm_head, (nn.Linear, QuantLinear)),
    )
    for module, kinds in ends:
        if isinstance(module, QuantizedModule):
            if module.reason_for_reference():
                return "The decoder needs a head and an embedding that native kernels can hold."
        elif not isinstance(module, kinds) or not _plain(module.weight):
            return (
                "The decoder needs a float32 or quantized head and embedding, and this model "
                f"has {type(module).__name__}."
            )
    others = [
        *(parameter for block in stack.layers for parameter in block.parameters()),
        *stack.norm.parameters(),
    ]
    if not all(_plain(parameter) for parameter in others):
        return (
            "The decoder computes in float32 on the CPU, and this model has parameters "
            "elsewhere or in another type."
        )
    return None


class Weights:
    """Return the native description of a model that `supports` accepts."""

    def __init__(self, model: nn.Module):
        config: Any = model.config
        stack: Any = model.model
        head: Any = model.lm_head
        layers = stack.layers
        self._keep: list[Any] = []  # keeps alive what the native side points to
        self._rotary = stack.rotary_emb
        self._rotation: tuple[torch.Tensor, torch.Tensor] | None = None
        self.layers, self.kv_heads, self.head_size = (
            len(layers),
            config.num_key_value_heads,
            _head_size(stack),
        )
        self.hidden = config.hidden_size
        embedding = stack.embed_tokens
        self.vocabulary = head.out_features
        blocks = self._blocks = (_Block * self.layers)(
            *(self._block(stack.layers[i], window(config, i)) for i in range(self.layers))
        )
        gemma = type(model).__name__.startswith("Gemma")
        self._model = _Model(
            self.layers,
            self.hidden,
            config.num_attention_heads,
            self.kv_heads,
            self.head_size,
            config.intermediate_size,
            self.vocabulary,
            config.rms_norm_eps,
            layers[0].self_attn.scaling,
            float(getattr(embedding, "embed_scale", 1.0)),
            float(gemma),  # Gemma stores the norms' weights minus 1
            ACTIVATIONS[config.hidden_act],
            self._buffer(stack.norm.weight),
            self._projection(embedding),
            self._projection(head),
            (ctypes.addressof(blocks), ctypes.sizeof(blocks)),
        )
        self.tokens = self._model.embedding.rows

    def run(
        self, ids: torch.Tensor, layers, starts: torch.Tensor | None = None, *, hidden=None, logits=None
    ) -> None:
        """Append the tokens `ids` (sequences, tokens) int64 to a cache's `NativeLayers` (or `Scratch`), which
        must have room for them.

        `starts` (sequences,) int64 is the number of padding slots of each sequence. Fill `hidden` (sequences,
        tokens, hidden) with the inputs of the head, or, for one sequence, `logits` (vocabulary,) after the
        last token. Raise `MemoryError` if buffers for CHUNK tokens do not fit.
        """
        sequences, tokens = ids.shape
        position = layers.length
        cosines, sines = self.rotation(position + tokens)
        keys, values = ((ctypes.c_int64 * len(numbers))(*numbers) for numbers in layers.buffers())
        best = ctypes.c_int64()
        stored = _Cache(
            (ctypes.addressof(keys), ctypes.sizeof(keys)),
            (ctypes.addressof(values), ctypes.sizeof(values)),
            layers.capacity,
            layers.half,
        )
        call = _Call(
            sequences,
            tokens,
            position,
            torch.get_num_threads(),
            CHUNK,
            library.buffer(starts, torch.int64),
            library.buffer(ids, torch.int64),
            *(library.buffer(part, torch.float32) for part in (cosines, sines, hidden, logits)),
            ctypes.addressof(best),
        )
        status = library.functions().qcore_decode(
            ctypes.byref(self._model), ctypes.byref(stored), ctypes.byref(call)
        )
        library.check(
            status, f"The native step cannot run {sequences} x {tokens} tokens at position {position}"
        )
        layers.advance(tokens)

    def rotation(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines (at least `positions`, head size / 2) from the model itself, which applies
        its own scaling of angles."""
        known = self._rotation
        if known is None or len(known[0]) < positions:
            count, half = max(256, 1 << (positions - 1).bit_length()), self.head_size // 2
            with torch.no_grad():
                cosines, sines = self._rotary(torch.empty(1, 1), torch.arange(count)[None])
            known = cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()
            self._rotation = known
        return known

    def _buffer(self, tensor: torch.Tensor | None) -> tuple[int | None, int]:
        self._keep.append(tensor)
        return library.buffer(tensor, torch.float32)

    def _projection(self, module: Any) -> _Projection:
        bias = self._buffer(getattr(module, "bias", None))
        if not isinstance(module, QuantizedModule):
            return _Projection(None, self._buffer(module.weight), bias, *module.weight.shape, 0)
        packed = module.executable()
        assert isinstance(packed, PackedWeight)  # guaranteed by `supports`
        self._keep.append(packed)
        mode = MODES[getattr(module, "activations", "fp32")]
        return _Projection(ctypes.pointer(packed.layout), (None, 0), bias, *packed.shape, mode)

    def _block(self, block: Any, window: int) -> _Block:
        attention = block.self_attn
        return _Block(
            self._buffer(block.input_layernorm.weight),
            self._buffer(block.post_attention_layernorm.weight),
            *(
                self._buffer(getattr(getattr(attention, name, None), "weight", None))
                for name in ("q_norm", "k_norm")
            ),
            *(self._projection(module) for module in _projections(block).values()),
            window,
        )


def _projections(block: Any) -> dict[str, Any]:
    attention, mlp = block.self_attn, block.mlp
    return {
        "q": attention.q_proj,
        "k": attention.k_proj,
        "v": attention.v_proj,
        "o": attention.o_proj,
        "gate": mlp.gate_proj,
        "up": mlp.up_proj,
        "down": mlp.down_proj,
    }


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _head_size(stack: Any) -> int:
    return stack.layers[0].self_attn.head_dim


def window(config: Any, index: int) -> int:
    """Return how many tokens this layer's attention sees, the current one included; 0 for no limit."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] != "sliding_attention":
        return 0
    return getattr(config, "sliding_window", None) or 0

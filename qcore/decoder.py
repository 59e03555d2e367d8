"""A Llama-type model run as a whole, one native call a step, with a cache of its own.

The model stays what it is, an ordinary Hugging Face module; the decoder only reads its weights. Each layer is computed as its module
says (the same kernels, the same activations), the small operations between them in float32, so both paths write the same tokens.

>>> decoder = Decoder(model)                     # doctest: +SKIP
>>> logits = decoder.prefill(prompt_ids)         # (vocabulary,), those after the last token
>>> logits = decoder.step(int(logits.argmax()))
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import nn

from qcore.errors import InputError
from qcore.kernels import native
from qcore.kernels.dispatch import MODES
from qcore.kernels.packed import Layout, PackedWeight
from qcore.nn import QuantEmbedding, QuantizedModule, QuantLinear

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose angles depend on the position alone
CAPACITY = 2048  # tokens of cache, unless more are asked for
CHUNK = 512  # tokens that are prefilled at a time
_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


class _Projection(ctypes.Structure):
    _fields_ = [
        ("packed", ctypes.POINTER(Layout)), ("dense", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("mode", ctypes.c_int32), ("unused", ctypes.c_int32),
    ]  # fmt: skip


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, _Projection) for name in _PROJECTIONS),
        ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p), ("window", ctypes.c_int64),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "heads", "kv_heads", "head_size", "inner", "vocabulary", "capacity")),
        ("epsilon", ctypes.c_float), ("attention_scale", ctypes.c_float), ("half_cache", ctypes.c_int32), ("threads", ctypes.c_int32),
        ("cosines", ctypes.c_void_p), ("sines", ctypes.c_void_p), ("final_norm", ctypes.c_void_p),
        ("embedding", _Projection), ("head", _Projection), ("blocks", ctypes.POINTER(_Block)),
    ]  # fmt: skip


def supports(model: nn.Module) -> str | None:
    """None if `Decoder(model)` works, else one sentence that says why the module path is used."""
    config = getattr(model, "config", None)
    if type(model).__name__ not in ARCHITECTURES:
        return f"The decoder knows Llama, Mistral, Qwen2 and Qwen3, and this is {type(model).__name__}."
    if reason := native.reason_missing():
        return reason
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        return f"The decoder does not know the position encoding {rope!r}."
    if config.hidden_act != "silu":
        return f"The decoder knows the activation function silu, and this model uses {config.hidden_act}."
    for block in model.model.layers:
        for name, module in _projections(block).items():
            if not isinstance(module, QuantLinear):
                return f"The decoder needs quantized layers, and {name}_proj of a block is {type(module).__name__}."
            if not isinstance(module.executable(), PackedWeight):
                return "The decoder needs weights that native kernels can hold, such as groups of 32, 64 or 128."
        if _head_size(model) % 8:
            return f"The decoder needs heads of a multiple of 8 dimensions, and these have {_head_size(model)}."
    for module, kinds in ((model.get_input_embeddings(), (nn.Embedding, QuantEmbedding)), (model.lm_head, (nn.Linear, QuantLinear))):
        if isinstance(module, QuantizedModule):
            if not isinstance(module.executable(), PackedWeight):
                return "The decoder needs a head and an embedding that native kernels can hold."
        elif type(module) not in kinds or not _plain(module.weight):
            return f"The decoder needs a float32 or quantized head and embedding, and this model has {type(module).__name__}."
    others = [*(p for block in model.model.layers for p in block.parameters()), *model.model.norm.parameters()]
    if not all(_plain(parameter) for parameter in others):
        return "The decoder computes in float32 on the CPU, and this model has parameters elsewhere or in another type."
    return None


class Decoder:
    """The model with a cache for `capacity` tokens, in float16 if `half_cache` (half the bytes; tokens may then differ).

    `activations` overrides what the layers say, see `kernels.dispatch`. One decoder runs one sequence, in one thread at a time;
    several decoders of one model may run at once. Raises `InputError` if `supports(model)` has a reason against it.
    """

    def __init__(self, model: nn.Module, *, capacity: int | None = None, half_cache: bool = False, activations: str | None = None):
        if reason := supports(model):
            raise InputError(reason)
        config = model.config
        limit = getattr(config, "max_position_embeddings", None) or CAPACITY
        self.capacity = min(limit, CAPACITY) if capacity is None else capacity
        if not self.capacity >= 1:
            raise InputError(f"The capacity is {capacity}, but it must be at least 1 token.")
        self.position = 0
        self._keep: list = [model]  # whatever the native side points to
        rows = -(-self.capacity // 8) * 8
        size, kv_heads = _head_size(model), config.num_key_value_heads
        self._cache = torch.zeros(len(model.model.layers), 2, kv_heads * rows * size, dtype=torch.float16 if half_cache else torch.float32)
        cosines, sines = _rotation(model, rows)
        self._activations = activations
        blocks = (_Block * len(model.model.layers))(*(self._block(model, i) for i in range(len(model.model.layers))))
        self.vocabulary = model.lm_head.weight.shape[0] if isinstance(model.lm_head, nn.Linear) else model.lm_head.out_features
        self._model = _Model(
            len(blocks), config.hidden_size, config.num_attention_heads, kv_heads, size, config.intermediate_size, self.vocabulary, rows,
            config.rms_norm_eps, model.model.layers[0].self_attn.scaling, half_cache, torch.get_num_threads(),
            self._hold(cosines), self._hold(sines), self._hold(model.model.norm.weight),
            self._projection(model.get_input_embeddings()), self._projection(model.lm_head), blocks,
        )  # fmt: skip

    def prefill(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Append the tokens `ids` (T,), T >= 1, and return the logits (vocabulary,) after the last. Raises `InputError` if they do not
        fit into the cache or the vocabulary."""
        ids = torch.as_tensor(ids, dtype=torch.int64).flatten().contiguous()
        self._check(ids)
        for start in range(0, ids.numel(), CHUNK):
            logits, _ = self._run(ids[start : start + CHUNK])
        return logits

    def step(self, token: int) -> torch.Tensor:
        """Append one token and return the logits (vocabulary,) after it."""
        return self.prefill((token,))

    def greedy(self, ids: torch.Tensor | Sequence[int], count: int) -> list[int]:
        """Append `ids` and then `count` tokens, each the most likely one, and return those; the last is not appended."""
        ids = torch.as_tensor(ids, dtype=torch.int64).flatten().contiguous()
        self._check(ids)
        if ids.numel() + count - 1 > self.capacity - self.position:
            raise InputError(f"{ids.numel()} tokens and {count} new ones do not fit into {self.capacity - self.position} free positions.")
        written = []
        for start in range(0, ids.numel(), CHUNK):
            _, best = self._run(ids[start : start + CHUNK])
        written.append(best)
        while len(written) < count:
            written.append(self._run(torch.tensor([written[-1]]))[1])
        return written[:count]

    def reset(self, position: int = 0) -> None:
        """Forget everything after the first `position` tokens."""
        if not 0 <= position <= self.position:
            raise InputError(f"The decoder holds {self.position} tokens and cannot go back to {position}.")
        self.position = position

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache."""
        return self._cache.nbytes

    def _check(self, ids: torch.Tensor) -> None:
        if not ids.numel():
            raise InputError("The decoder needs at least one token.")
        if ids.numel() > self.capacity - self.position:
            raise InputError(f"{ids.numel()} tokens do not fit into the {self.capacity - self.position} free positions of the cache.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < self._model.embedding.rows:
            raise InputError(f"A token lies outside the vocabulary of {self._model.embedding.rows}.")

    def _run(self, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        logits, best = torch.empty(self.vocabulary), ctypes.c_int64()
        self._model.threads = torch.get_num_threads()
        native.library().qcore_decode(
            ctypes.byref(self._model), ids.data_ptr(), ids.numel(), self.position, logits.data_ptr(), ctypes.byref(best)
        )
        self.position += ids.numel()
        return logits, best.value

    def _hold(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().float().contiguous()
        self._keep.append(tensor)
        return tensor.data_ptr()

    def _projection(self, module: nn.Module) -> _Projection:
        bias = self._hold(getattr(module, "bias", None))
        if not isinstance(module, QuantizedModule):
            return _Projection(None, self._hold(module.weight), bias, *module.weight.shape, 0, 0)
        packed = module.executable()
        self._keep.append(packed)
        mode = MODES[self._activations or getattr(module, "activations", "fp32")]
        return _Projection(ctypes.pointer(packed.layout), None, bias, *packed.shape, mode, 0)

    def _block(self, model: nn.Module, index: int) -> _Block:
        block = model.model.layers[index]
        attention = block.self_attn
        return _Block(
            self._hold(block.input_layernorm.weight),
            self._hold(block.post_attention_layernorm.weight),
            *(self._hold(getattr(getattr(attention, name, None), "weight", None)) for name in ("q_norm", "k_norm")),
            *(self._projection(module) for module in _projections(block).values()),
            self._cache[index, 0].data_ptr(),
            self._cache[index, 1].data_ptr(),
            _window(model.config, index),
        )


def _projections(block: nn.Module) -> dict[str, nn.Module]:
    attention, mlp = block.self_attn, block.mlp
    return {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj,
            "gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}  # fmt: skip


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _head_size(model: nn.Module) -> int:
    return model.model.layers[0].self_attn.head_dim


def _window(config, index: int) -> int:
    """How far this layer looks back, itself included; 0 for no limit."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] != "sliding_attention":
        return 0
    return getattr(config, "sliding_window", None) or 0


def _rotation(model: nn.Module, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, head size / 2), from the model itself, which knows how its angles are scaled."""
    with torch.inference_mode():
        cosines, sines = model.model.rotary_emb(torch.empty(1, 1), torch.arange(positions)[None])
    half = _head_size(model) // 2
    return cosines[0, :, :half].clone(), sines[0, :, :half].clone()

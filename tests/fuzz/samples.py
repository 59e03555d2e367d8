"""Small valid files, as bytes or JSON objects, which mutations start from."""

import json
import struct
from typing import Any

HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
    "model.norm.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [32, 36]},
    "lm_head.weight": {"dtype": "U8", "shape": [3, 4], "data_offsets": [36, 48]},
}
INDEX = {
    "metadata": {"total_size": 48},
    "weight_map": {
        "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
        "model.norm.weight": "model-00002-of-00002.safetensors",
    },
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": None,
    "dtype": "bfloat16",
    "id2label": {"0": "A", "1": "B"},
    "label2id": {"A": 0, "B": 1},
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 16,
    "moe_intermediate_size": 8,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [0],
    "layer_types": ["full_attention", "full_attention"],
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}
WRAPPER: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "image_token_index": 30,
    "mm_tokens_per_image": 4,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "sliding_window": 8,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
}
GENERATION: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "max_length": 2048,
    "repetition_penalty": 1.05,
    "suppress_tokens": [4],
    "cache_implementation": "hybrid",
    "transformers_version": "5.24.0",
}
LEDGER: dict[str, Any] = {
    "recipe": "int8",
    "rows": [
        {
            "name": "a.weight",
            "shape": [4, 2],
            "dtype": "float32",
            "format": "int8",
            "bytes_before": 32,
            "bytes_after": 16,
            "weights": 8,
            "reason": None,
            "intended": True,
        }
    ],
}
RECIPE: dict[str, Any] = {
    "name": "int8",
    "weights": {"type": "uniform", "bits": 8, "group_size": None, "symmetric": True, "double_quant": False},
    "method": "rtn",
    "activations": "int16",
    "modules": {"head": "keep", "embeddings": "keep", "skip": []},
    "prepare": "none",
}
ONNX: dict[str, Any] = {
    "version": 1,
    "recipe": RECIPE,
    "ledger": LEDGER,
    "agreement": {"prefill": 0.1},
    "sha256": {"model.onnx": "0" * 64, "model.onnx.data": "1" * 64},
    "from": {"model": "x", "revision": None, "digest": "0"},
}
TEMPLATES = (
    b"{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% endfor %}"
    b"{% if add_generation_prompt %}<|assistant|>{% endif %}",
    b"{%- set ns = namespace(found=false) -%}{%- for message in messages[::-1] -%}"
    b"{%- if message.role == 'user' and not ns.found -%}{%- set ns.found = true -%}{%- endif -%}"
    b"{{ bos_token + message.content | upper }}{%- endfor -%}{{ raise_exception('no') if false else '' }}",
    b"{% macro show(x, n=2) %}{{ x * n }}{% endmacro %}{% for i in range(3) %}{{ show(i) }}{% endfor %}"
    b"{{ messages | tojson }}{{ '%s' | format(messages | length) }}",
)
TEMPLATE_WORDS = (
    *(
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"{% for i in range(99999) %}",
        b"{% endfor %}",
        b"{% if x %}",
        b"{% endif %}",
    ),
    *(b"| map('upper')", b"| join('')", b"| nosuch", b" * 9999", b"__class__", b".__init__", b"| attr('x')"),
    *(
        b"namespace()",
        b"messages",
        b"raise_exception('x')",
        b"| format(1)",
        b"loop.index",
        b"[0]",
        b" ~ ",
        b"{#",
    ),
    *(
        b"include 'x'",
        b"{% import 'os' as os %}",
        b" ** (10 ** 9)",
        b".center(10 ** 10)",
        b"{% break %}",
        b"strftime_now('%Y')",
        b"| tojson",
    ),
)
TEXTS = (
    "Ein Text.\nNoch einer.\r\nÄ☃😀".encode(),
    b"a\n\n\nb\tc",
    "\ufeffBOM".encode(),
    "x".encode("utf-16"),
)
ROWS = (
    b'{"text": "One", "id": 1}\n{"prompt": "Two", "kind": "facts"}\n',
    b'[{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]}, "Three"]',
    b'{"data": [{"instruction": "Do", "input": "it"}]}',
    b'{"question": "Q?", "choices": ["a", "b"], "answer": 1}\n'
    b'{"question": {"stem": "S", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},'
    b' "answerKey": "B"}\n',
    b'{"ctx": "C", "endings": ["a", "b", "c"], "label": "2"}\n'
    b'{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}',
    b"question,answer,A,B\nWhat?,A,x,y\nWho?,B,x,z\n",
    b"What?,x,y,A\nWho?,x,z,B\n",
    b"sep=;\nquestion;answer;choices\nQ;a;a|b\n",
    b"text\tkind\nOne\tfacts\n",
)
NAMES = (b"owner/name", b"smollm2-135m", b"https://huggingface.co/a/b", b"../../etc", b"C:\\x", b"a--b/c.git")
RECIPES = (
    *(b"int4-g64-sym-dq", b"rot-int4-g32-gptq-head8", b"auto-4.25bpw-hqq", b"gguf-q4_k_m", b"nf4-g64-dq-a8"),
    *(b"saved:folder", b"file:owner/name", b"bnb-nf4", b"int4,int8", b"kmeans4", b"gguf-auto-90mb", b"fp32"),
)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def gguf(entries: list[bytes], tensors: list[tuple[str, tuple[int, ...], int, int]]) -> bytes:
    """Return a GGUF file of encoded `entries` and of tensors (name, shape innermost first, type, bytes)."""
    out = [b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)), *entries]
    place = 0
    for name, shape, kind, nbytes in tensors:
        out.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place))
        place += -(-nbytes // 32) * 32
    head = b"".join(out)
    return head + bytes(-len(head) % 32 + place)


def gguf_model() -> bytes:
    """Return a GGUF file with the settings of a Llama and two tensors."""
    numbers = {
        "context_length": 64,
        "block_count": 1,
        "feed_forward_length": 32,
        "embedding_length": 16,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "rope.dimension_count": 8,
    }
    entries = [
        _entry("general.architecture", 8, _text("llama")),
        _entry("general.alignment", 4, struct.pack("<I", 32)),
        *(_entry(f"llama.{key}", 4, struct.pack("<I", value)) for key, value in numbers.items()),
        _entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        _entry("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        _entry("llama.rope.scaling.type", 8, _text("yarn")),
        _entry("llama.rope.scaling.factor", 6, struct.pack("<f", 2)),
        _entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + _text("a") + _text("b")),
        _entry("tokenizer.ggml.scores", 9, struct.pack("<IQ2f", 6, 2, 0, 1)),
        _entry("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 1)),
    ]
    tensors = [
        *(("token_embd.weight", (16, 4), 0, 256), ("blk.0.attn_q.weight", (32, 2), 2, 36)),
        ("rope_freqs.weight", (4,), 0, 16),
    ]
    return gguf(entries, tensors)


def gguf_imatrix() -> bytes:
    """Return an importance matrix in GGUF."""
    entries = [
        _entry("general.type", 8, _text("imatrix")),
        _entry("imatrix.datasets", 9, struct.pack("<IQ", 8, 1) + _text("text")),
        _entry("imatrix.chunk_count", 4, struct.pack("<I", 2)),
        _entry("imatrix.chunk_size", 4, struct.pack("<I", 512)),
    ]
    weight = "blk.0.attn_q.weight"
    return gguf(entries, [(f"{weight}.in_sum2", (8, 2), 0, 64), (f"{weight}.counts", (1, 2), 0, 8)])


def legacy_imatrix() -> bytes:
    """Return an importance matrix in llama.cpp's older form."""
    name = b"blk.0.attn_q.weight"
    values = struct.pack("<4f", 1, 2, 3, 4)
    body = struct.pack("<i", len(name)) + name + struct.pack("<ii", 2, 4) + values
    return struct.pack("<i", 1) + body + struct.pack("<ii", 2, 4) + b"text"


def tokenizer() -> dict[str, Any]:
    """Return the files of a small tokenizer, by name."""
    inner = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 6,
                "content": "<s>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "Ġ": 5},
            "merges": [["a", "b"], ["ab", "c"]],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
        "model_max_length": 64,
        "added_tokens_decoder": {"6": {"content": "<s>", "special": True}},
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": [],
        "padding_side": "left",
    }
    return {
        "tokenizer.json": inner,
        "tokenizer_config.json": settings,
        "special_tokens_map.json": {"bos_token": "<s>"},
        "added_tokens.json": {"<x>": 7},
    }


def encoded(value: Any) -> bytes:
    """Return JSON as bytes."""
    return json.dumps(value).encode()

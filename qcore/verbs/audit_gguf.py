"""Checks of GGUF files: the tensors that llama.cpp expects, the vocabulary, the special tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from qcore.models.gguf_header import Header
from qcore.verbs.audit_subject import Subject
from qcore.verbs.audit_types import BROKEN, GGUF, KNOW, LOSES, Spot, check

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_PARTS = (".weight", ".bias", ".scale", ".input_scale")
_HYBRID = ("ssm_", "time_mix", "shortconv")  # state-space and recurrent blocks
_FEW = 0.1  # the share of blocks that may lack a tensor by mistake
_LLAMA_3_BASE, _LONG_CONTEXT = 500_000.0, 131_072  # Llama 3.1 and later scale their rope frequencies


def _number(header: Header, key: str) -> int | None:
    found = header.number(f"{header.architecture}.{key}")
    return int(found) if found is not None else None


def _blocks(header: Header) -> dict[int, set[str]]:
    """Return the names of the tensors of each block."""
    found: dict[int, set[str]] = {}
    for tensor in header.tensors:
        if match := _BLOCK.fullmatch(tensor.name):
            found.setdefault(int(match[1]), set()).add(match[2])
    return found


@check(
    "gguf-tensors",
    BROKEN,
    "The tensors are not those that the architecture needs",
    effect="llama.cpp refuses the file with 'wrong number of tensors' or 'missing tensor'.",
    remedy="Convert the original model again with a current converter.",
    kinds=(GGUF,),
)
def tensors(subject: Subject) -> Iterator[Spot]:
    """Compare the tensors with block_count, with those of other blocks, and with the names that the gguf
    library lists for the architecture. A tensor that nearly all blocks have must be in all blocks of the same
    kind (dense, or mixture of experts); blocks of hybrid models differ and are not compared."""
    header = subject.of_gguf
    if header is None:
        return
    names = {tensor.name for tensor in header.tensors}
    blocks = _blocks(header)
    count = _number(header, "block_count")
    if count is not None:
        count -= _number(header, "nextn_predict_layers") or 0
        for number in range(count):
            if number not in blocks:
                yield Spot(f"blk.{number}", f"The block has no tensors, but block_count is {count}.")
    yield from _uneven(blocks)
    known = _known(header.architecture)
    for name in sorted(names):
        if known and _base(name) not in known:
            yield Spot(name, f"llama.cpp knows no such tensor for the architecture {header.architecture!r}.")
    for name in ("token_embd.weight", "output_norm.weight"):
        if known and name not in names and _base(name) in known:
            yield Spot(name, "Every file of this architecture has it.")
    if _lacks_rope_factors(header, names):
        yield Spot(
            "rope_freqs.weight",
            "Llama 3.1 and later need it for their scaled rope frequencies: "
            f"{len(names) + 1} tensors are expected, {len(names)} are there.",
        )


def _uneven(blocks: dict[int, set[str]]) -> Iterator[Spot]:
    if any(name.startswith(_HYBRID) for held in blocks.values() for name in held):
        return
    for kind in (True, False):  # blocks with experts and dense ones, where a model mixes them
        alike = {n: held for n, held in blocks.items() if any("exps" in name for name in held) == kind}
        counts = Counter(name for held in alike.values() for name in held)
        for number, held in sorted(alike.items()):
            for name in sorted(counts):
                if name not in held and len(alike) - counts[name] <= max(1, _FEW * len(alike)):
                    yield Spot(f"blk.{number}.{name}", f"{counts[name]} other blocks have it.")


def _base(name: str) -> str:
    """Return the name without the block's number and the suffix, as the gguf library lists it."""
    for part in _PARTS:
        name = name.removesuffix(part)
    return re.sub(r"\.\d+(?=\.|$)", ".{bid}", name)


def _known(architecture: str) -> frozenset[str]:
    """Return the names that the gguf library lists for an architecture; empty for an unknown one."""
    from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

    kind = next((kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    listed = MODEL_TENSORS.get(kind, ()) if kind is not None else ()
    # not listed everywhere, but written by converters and known to llama.cpp
    return (
        frozenset({"rope_freqs", "output", *(TENSOR_NAMES[each] for each in listed)})
        if listed
        else frozenset()
    )


def _lacks_rope_factors(header: Header, names: set[str]) -> bool:
    base = header.number(f"{header.architecture}.rope.freq_base")
    context = _number(header, "context_length") or 0
    return (
        header.architecture == "llama"
        and base == _LLAMA_3_BASE
        and context >= _LONG_CONTEXT
        and "rope_freqs.weight" not in names
        and f"{header.architecture}.rope.scaling.type" not in header.entries
    )


@check(
    "gguf-experts",
    BROKEN,
    "The number of experts is not the one in the settings",
    effect="llama.cpp refuses the file, or tokens are routed to experts that are not there.",
    remedy="Convert the original model again.",
    kinds=(GGUF,),
)
def experts(subject: Subject) -> Iterator[Spot]:
    """Compare expert_count with the first dimension of the stacked experts and the rows of the router."""
    header = subject.of_gguf
    count = _number(header, "expert_count") if header else None
    for tensor in header.tensors if header and count else ():
        stacked = "_exps." in tensor.name and len(tensor.shape) == 3
        router = tensor.name.endswith("ffn_gate_inp.weight") and len(tensor.shape) == 2
        if (stacked or router) and tensor.shape[0] != count:
            yield Spot(tensor.name, f"It has {tensor.shape[0]} experts, expert_count is {count}.")


@check(
    "gguf-vocabulary",
    BROKEN,
    "The vocabulary and the embedding differ in size",
    effect="llama.cpp refuses the file: the shape of token_embd.weight is wrong.",
    remedy="Convert the model again together with its own tokenizer.",
    kinds=(GGUF,),
)
def vocabulary(subject: Subject) -> Iterator[Spot]:
    """Compare the list of tokens with the rows of the embedding."""
    header = subject.of_gguf
    if header is None or "tokenizer.ggml.tokens" not in header.lengths:
        return
    count = header.lengths["tokenizer.ggml.tokens"]
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and tensor.shape and tensor.shape[0] != count:
            yield Spot(tensor.name, f"It has {tensor.shape[0]:,} rows, the vocabulary {count:,} tokens.")


@check(
    "gguf-token-range",
    BROKEN,
    "A special token lies outside of the vocabulary",
    effect="Generation never stops at it, or the runtime crashes when it looks the token up.",
    remedy="Correct the key with gguf-set-metadata, or convert the model again.",
    kinds=(GGUF,),
)
def token_range(subject: Subject) -> Iterator[Spot]:
    """Compare the ids of the special tokens with the length of the vocabulary."""
    header = subject.of_gguf
    count = header.lengths.get("tokenizer.ggml.tokens") if header else None
    for name in ("bos", "eos", "eot", "eom", "padding", "unknown"):
        key = f"tokenizer.ggml.{name}_token_id"
        number = header.number(key) if header else None
        if count and number is not None and not 0 <= number < count:
            yield Spot(key, f"It is {int(number):,}, but the vocabulary has {count:,} tokens.")


@check(
    "gguf-eos-missing",
    LOSES,
    "The file names no token that ends a text",
    effect="Generation goes on until the length limit.",
    remedy="Add tokenizer.ggml.eos_token_id, or convert the model again.",
    kinds=(GGUF,),
)
def eos_missing(subject: Subject) -> Iterator[Spot]:
    """Look for the end-of-text token of a file with a vocabulary."""
    header = subject.of_gguf
    named = header and any(f"tokenizer.ggml.{name}_token_id" in header.entries for name in ("eos", "eot"))
    if header and "tokenizer.ggml.tokens" in header.lengths and not named:
        yield Spot("tokenizer.ggml.eos_token_id", "The key is missing.")


@check(
    "gguf-tokenizer-missing",
    BROKEN,
    "The file has no tokenizer",
    effect="llama.cpp cannot turn text into tokens.",
    remedy="Convert the original model again, with its tokenizer.",
    kinds=(GGUF,),
)
def tokenizer_missing(subject: Subject) -> Iterator[Spot]:
    """Look for the vocabulary. The second and later parts of a split file have none."""
    header = subject.of_gguf
    if header is not None and "tokenizer.ggml.tokens" not in header.lengths and not header.number("split.no"):
        yield Spot("tokenizer.ggml.tokens", "The key is missing.")


@check(
    "gguf-pretokenizer",
    LOSES,
    "The file does not name its pre-tokenizer",
    effect="llama.cpp falls back to a default that splits text in another way than the original: answers get "
    "worse, and it warns at every start.",
    remedy="Convert the model again with a current converter.",
    kinds=(GGUF,),
)
def pretokenizer(subject: Subject) -> Iterator[Spot]:
    """Look for tokenizer.ggml.pre of a byte-pair vocabulary of some size."""
    header = subject.of_gguf
    if (
        header
        and header.text("tokenizer.ggml.model") == "gpt2"
        and "tokenizer.ggml.pre" not in header.entries
    ):
        yield Spot("tokenizer.ggml.pre", "The key is missing; the vocabulary is of the kind gpt2.")


@check(
    "gguf-type-unknown",
    KNOW,
    "A tensor has a type that is not known here",
    effect="Its size and values were not checked; a fork of llama.cpp may be needed to read it.",
    remedy="Nothing, if your runtime reads it.",
    kinds=(GGUF,),
)
def unknown_type(subject: Subject) -> Iterator[Spot]:
    """Look for types that the gguf library does not know."""
    for tensor in subject.of_gguf.tensors if subject.of_gguf else ():
        if tensor.nbytes is None:
            yield Spot(tensor.name, f"ggml's type {tensor.type}.")

"""The settings of a GGUF file: those of the model, where it is from, and its tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qcore
from qcore.base.errors import InputError
from qcore.interop import gguf_metadata, gguf_tokenizer
from qcore.interop.gguf_writer import Field
from qcore.library import companions
from qcore.library.parameters import Parameters
from qcore.library.saving import made_from
from qcore.models.checkpoint import Checkpoint
from qcore.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_ENDS = 3  # tokens that end a text and for which llama.cpp has a setting: eos, eot, eom


def fields_of(
    parameters: Parameters, config: Any, tokenizer: PreTrainedTokenizerBase, recipe: Recipe | None, kind: str
) -> tuple[list[Field], tuple[str, ...]]:
    """Return all settings of the file, and notes."""
    checkpoint = parameters.checkpoint
    metadata, _ = companions.card(checkpoint)
    origin = made_from(checkpoint.folder) or checkpoint.origin
    languages = metadata.get("language") or []
    languages = [languages] if isinstance(languages, str) else [str(each) for each in languages]
    general = gguf_metadata.general(
        config,
        name=_model_name(checkpoint, tokenizer),
        file_type=kind,
        licence=companions.licence(checkpoint),
        base=origin["model"] if re.fullmatch(r"[\w.-]+/[\w.-]+", str(origin["model"])) else None,
        quantized_by=f"qcore {qcore.__version__}" + (f", {recipe.name}" if recipe else ""),
        languages=languages,
    )
    tokens, ends = tokenizer_fields(checkpoint, config, tokenizer)
    notes = list(gguf_metadata.notes(config))
    if len(ends) > _MOST_ENDS:
        others = ", ".join(repr(tokenizer.convert_ids_to_tokens(end)) for end in ends[_MOST_ENDS:])
        notes.append(f"A GGUF file names at most three tokens that end a text; it does not name {others}.")
    if lost := companions.unclaimed(checkpoint):
        notes.append(
            f"Not in the file, because the architecture does not use them: {lost[0]}"
            + (f" and {len(lost) - 1} more tensors." if len(lost) > 1 else ".")
        )
    if recipe is not None and recipe.activations == "int8":
        notes.append(
            "llama.cpp chooses by itself in which precision it reads activations; the recipe's choice is "
            "not stored."
        )
    return [*general, *gguf_metadata.fields(config), *tokens], tuple(notes)


def tokenizer_fields(
    checkpoint: Checkpoint, config: Any, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Field], tuple[int, ...]]:
    """Return the settings of the tokenizer, and all tokens that end a text. Raise `InputError` if llama.cpp
    would split text in another way."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"The tokenizer of {checkpoint.name} has no tokenizer.json and cannot be converted to one, so "
            "it cannot be written into a GGUF file."
        )
    pieces = checkpoint.folder / "tokenizer.model"
    found = gguf_tokenizer.vocabulary(
        json.loads(backend.to_str()),
        config.vocab_size,
        encode=tokenizer.encode,
        pieces=pieces if pieces.is_file() else None,
    )

    def known(*ids: int | None) -> tuple[int, ...]:
        """Return those that the model can read: some classes of tokenizers add tokens of their own."""
        return tuple(dict.fromkeys(i for i in ids if i is not None and i < config.vocab_size))

    ends = known(tokenizer.eos_token_id, *companions.eos_ids(checkpoint))
    ids = tokenizer("a")["input_ids"]
    special = gguf_tokenizer.SpecialTokens(
        bos=next(iter(known(tokenizer.bos_token_id, config.bos_token_id)), None),
        ends=ends,
        unknown=next(iter(known(tokenizer.unk_token_id)), None),
        padding=next(iter(known(tokenizer.pad_token_id, config.pad_token_id)), None),
    )
    fields = gguf_tokenizer.fields(
        found,
        special,
        adds_bos=special.bos is not None and ids[0] == special.bos,
        adds_eos=bool(ends) and ids[-1] == ends[0],
        templates=companions.chat_templates(checkpoint),
    )
    return fields, ends


def file_name(checkpoint: Checkpoint) -> str:
    last = Path(checkpoint.name).name.removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "model"


def _model_name(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name to store. llama.cpp treats names with "phi-3" specially, and fails if the tokens of
    that model are missing."""
    name, words = file_name(checkpoint), tokenizer.get_vocab()
    if all(token in words for token in ("</s>", "<unk>", "<s>", "<|endoftext|>")):
        return name
    return re.sub(r"(?i)phi-?3", "phi", name)

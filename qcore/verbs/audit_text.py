"""Checks of everything around text: vocabulary, special tokens, chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from qcore.models.config_limits import text_settings
from qcore.verbs.audit_subject import Subject
from qcore.verbs.audit_types import BROKEN, GGUF, KNOW, LOSES, Spot, check

_TURNS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start_of_role\|>|<\|user\|>|\[INST\]|<\|turn>"
)
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
TEMPLATE = "chat_template.jinja"


def _ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {each for each in values if type(each) is int}


def token_ids(subject: Subject, *, added: bool = True) -> dict[str, int]:
    """Return the tokens of tokenizer.json with their ids, with the `added` ones; empty without that file."""
    tokenizer = subject.settings.get("tokenizer.json", {})
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        found |= {token: number for token, number in vocabulary.items() if type(number) is int}
    elif isinstance(vocabulary, list):  # unigram: [token, score] in the order of the ids
        found |= {
            entry[0]: number for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry
        }
    for entry in _entries(tokenizer.get("added_tokens")) if added else ():
        if isinstance(entry.get("content"), str) and type(entry.get("id")) is int:
            found[entry["content"]] = entry["id"]
    return found


def _entries(value: Any) -> Iterable[dict]:
    return (entry for entry in value if isinstance(entry, dict)) if isinstance(value, list) else ()


def special(subject: Subject, name: str) -> str | None:
    """Return the tokenizer's "eos", "bos" or "pad" token."""
    found = subject.settings.get("tokenizer_config.json", {}).get(f"{name}_token")
    if isinstance(found, dict):
        found = found.get("content")
    return found if isinstance(found, str) else None


def _special_id(subject: Subject, name: str) -> int | None:
    token = special(subject, name)
    return None if token is None else token_ids(subject).get(token)


def _rows(subject: Subject) -> int | None:
    """Return the rows of the stored embedding."""
    found = subject.structure
    stored = found.embedding_stored if found else None
    return stored.shape[0] if stored and stored.shape else None


@check(
    "vocabulary-size",
    BROKEN,
    "The vocabulary and the embedding differ in size",
    effect="Loading stops, or a token beyond the embedding crashes generation.",
    remedy="Take config.json, tokenizer and weights from the same model.",
)
def vocabulary(subject: Subject) -> Iterator[Spot]:
    """Compare vocab_size and the largest id of the vocabulary with the rows of the embedding."""
    rows = _rows(subject)
    if rows is None or subject.structure is None:
        return
    stated = text_settings(subject.config).get("vocab_size")
    if isinstance(stated, int) and stated != rows:
        yield Spot(
            subject.structure.embedding, f"It has {rows:,} rows, but vocab_size in config.json is {stated:,}."
        )
    largest = max(token_ids(subject, added=False).values(), default=0)
    if largest >= rows:
        yield Spot("tokenizer.json", f"It has the token id {largest:,}, but the embedding has {rows:,} rows.")


@check(
    "tokens-added",
    KNOW,
    "Tokens were added beyond the embedding",
    effect="A prompt with such a token crashes, or reads outside of the matrix; other prompts are fine.",
    remedy="Avoid these tokens, or resize the embedding of the original model.",
)
def added(subject: Subject) -> Iterator[Spot]:
    """Compare the ids of added tokens with the rows of the embedding."""
    rows = _rows(subject)
    beyond = {token: number for token, number in token_ids(subject).items() if rows and number >= rows}
    base = token_ids(subject, added=False)
    for token, number in sorted(beyond.items(), key=lambda item: item[1]):
        if token not in base:
            yield Spot(token, f"Its id is {number:,}, but the embedding has {rows:,} rows.")


@check(
    "tokenizer-missing",
    KNOW,
    "The folder has no tokenizer",
    effect="Runtimes that take text cannot use the model by itself.",
    remedy="Take the tokenizer's files from the original model.",
)
def tokenizer_missing(subject: Subject) -> Iterator[Spot]:
    """Look for any of the files from which tokenizers are made."""
    if not any(file in subject.files for file in _TOKENIZERS):
        yield Spot("tokenizer.json", "Neither this file nor another vocabulary is there.")
    elif "tokenizer.json" not in subject.files:
        subject.not_looked_at.append("The vocabulary was not read: there is no tokenizer.json.")


@check(
    "token-range",
    BROKEN,
    "A special token lies outside of the vocabulary",
    effect="Generation never stops at it, or crashes when the token is looked up.",
    remedy="Correct the id in config.json or generation_config.json.",
)
def token_range(subject: Subject) -> Iterator[Spot]:
    """Compare the ids of the special tokens with the rows of the embedding."""
    rows = _rows(subject)
    for file in ("config.json", "generation_config.json") if rows else ():
        settings = text_settings(subject.settings.get(file, {}))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            for number in sorted(_ids(settings.get(name))):
                if rows is not None and number >= rows:
                    yield Spot(file, f"{name} is {number:,}, but the embedding has {rows:,} rows.")


@check(
    "eos-disagreement",
    LOSES,
    "The end-of-text tokens of model and tokenizer disagree",
    effect="Generation does not stop where a turn ends, and the model goes on talking to itself.",
    remedy="Put every token that ends a turn into eos_token_id of generation_config.json.",
)
def eos(subject: Subject) -> Iterator[Spot]:
    """Compare config, generation config and tokenizer: the tokenizer's token must be one that stops
    generation, and the two configs must have a token in common."""
    config = _ids(text_settings(subject.config).get("eos_token_id"))
    generation = _ids(subject.settings.get("generation_config.json", {}).get("eos_token_id"))
    if config and generation and not config & generation:
        yield Spot(
            "generation_config.json", f"eos_token_id is {_list(generation)}, in config.json {_list(config)}."
        )
    own, stops = _special_id(subject, "eos"), generation or config
    if own is not None and stops and own not in stops:
        yield Spot(
            "tokenizer_config.json",
            f"eos_token {special(subject, 'eos')!r} has the id {own}, but generation stops at "
            f"{_list(stops)}.",
        )


def _list(ids: set[int]) -> str:
    return " or ".join(map(str, sorted(ids)))


@check(
    "bos-disagreement",
    LOSES,
    "The first tokens of model and tokenizer disagree",
    effect="Prompts begin with a token that the model was not trained to begin with.",
    remedy="Correct bos_token_id in config.json and generation_config.json, or bos_token of the tokenizer.",
)
def bos(subject: Subject) -> Iterator[Spot]:
    """Compare config, generation config and tokenizer where they name a token."""
    yield from _disagreement(subject, "bos")


@check(
    "pad-disagreement",
    KNOW,
    "The padding tokens of model and tokenizer disagree",
    effect="Batches of unequal prompts may be padded with a token that the model reads as text.",
    remedy="Correct pad_token_id in config.json and generation_config.json, or pad_token of the tokenizer.",
)
def pad(subject: Subject) -> Iterator[Spot]:
    """Compare config, generation config and tokenizer where they name a token."""
    yield from _disagreement(subject, "pad")


def _disagreement(subject: Subject, name: str) -> Iterator[Spot]:
    stated = {
        "config.json": text_settings(subject.config).get(f"{name}_token_id"),
        "generation_config.json": subject.settings.get("generation_config.json", {}).get(f"{name}_token_id"),
        "tokenizer_config.json": _special_id(subject, name),
    }
    known = {file: number for file, number in stated.items() if type(number) is int and number >= 0}
    if len(set(known.values())) > 1:
        yield Spot(
            f"{name}_token_id", ", ".join(f"{number} in {file}" for file, number in known.items()) + "."
        )


# -- chat template -------------------------------------------------------------------------------------------


def _templates(subject: Subject) -> dict[str, str]:
    """Return the chat templates by file."""
    found: dict[str, str] = {}
    for file in ("tokenizer_config.json", "chat_template.json"):
        text = subject.settings.get(file, {}).get("chat_template")
        if isinstance(text, str):
            found[file] = text
        elif isinstance(text, list):
            found[file] = next(
                (str(entry.get("template")) for entry in _entries(text) if entry.get("name") == "default"), ""
            )
    if TEMPLATE in subject.files:
        try:
            found[TEMPLATE] = (subject.folder / TEMPLATE).read_text(encoding="utf-8")
        except (OSError, ValueError):
            found[TEMPLATE] = ""
    return found


@check(
    "template-missing",
    KNOW,
    "The tokenizer has tokens for the turns of a dialogue, but there is no chat template",
    effect="Chat runtimes fall back to a template of their own or refuse a dialogue; answers get worse.",
    remedy="Take chat_template.jinja from the original model, unless this is a base model without one.",
    kinds=("folder", GGUF),
)
def template_missing(subject: Subject) -> Iterator[Spot]:
    """Look for a template where the vocabulary has tokens of turns."""
    if subject.of_gguf is not None:
        tokens: Iterable[str] = subject.tokens
        present = "tokenizer.chat_template" in subject.of_gguf.entries
    else:
        tokens, present = token_ids(subject), bool(_templates(subject))
    turn = next((token for token in tokens if _TURNS.fullmatch(token)), None)
    if turn is not None and not present:
        yield Spot("chat template", f"The vocabulary has {turn!r}.")


@check(
    "template-one-place",
    KNOW,
    "The chat template is only in chat_template.jinja",
    effect="Runtimes that read tokenizer_config.json alone, such as text-generation-inference, find no "
    "template.",
    remedy="Put the template into tokenizer_config.json too, under chat_template.",
)
def template_place(subject: Subject) -> Iterator[Spot]:
    """Look for a template that a model quantized for other runtimes has in one of its two places only. A
    model in floating point is as transformers saves it."""
    if set(_templates(subject)) == {TEMPLATE} and subject.method is not None and not subject.is_ours:
        yield Spot(TEMPLATE, "tokenizer_config.json has no chat_template.")


@check(
    "template-differs",
    LOSES,
    "The two chat templates differ",
    effect="A dialogue is rendered one way or another, depending on the runtime.",
    remedy="Keep the right one in both files.",
)
def template_differs(subject: Subject) -> Iterator[Spot]:
    """Compare the templates of all files, trailing blanks aside."""
    found = _templates(subject)
    if len({text.strip() for text in found.values()}) > 1:
        yield Spot(" and ".join(found), "They are not equal.")

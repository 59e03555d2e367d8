"""The files of a tokenizer: what can be checked before transformers reads them, and what it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.models.headers import check_present, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OLDER_TEMPLATE = "chat_template.json"  # transformers reads it for processors only
_NO_VOCABULARY = "Couldn't instantiate the backend tokenizer"


def check(folder: Path, name: str) -> None:
    """Raise `InputError` if the folder of the model `name` has no tokenizer, or if one of its files is a
    pointer to Git LFS, or not the JSON object that it must be."""
    present = [file for file in (*_VOCABULARIES, *_SETTINGS[:1]) if (folder / file).exists()]
    if not present:
        raise InputError(
            f"{name} has no tokenizer (there is no tokenizer.json), so it cannot read text. Copy "
            "the tokenizer files of the original model into its folder."
        )
    for file in present:
        check_present(folder / file)
    for file in _SETTINGS:
        if (folder / file).exists():
            read_json(folder / file)
    if (folder / "tokenizer.json").exists():
        with (folder / "tokenizer.json").open("rb") as opened:
            start = opened.read(64).lstrip()
        if not start.startswith(b"{"):
            raise InputError(
                f"tokenizer.json of {name} does not hold a JSON object: it begins with {start[:20]!r}. "
                "Download it again."
            )


def reason(error: Exception) -> str:
    """Return why transformers cannot read a tokenizer, in one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if first.startswith(_NO_VOCABULARY):
        return "there is no tokenizer.json and no other file with a vocabulary that it could be made from"
    return first


def settle(tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Return the `tokenizer` of the model `name` with the chat template that only an older file holds. Raise
    `InputError` for a longest text that is not a number."""
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float):
        raise InputError(
            f"tokenizer_config.json of {name} has model_max_length = {longest!r}, but it must be a number. "
            "Correct the file."
        )
    if not getattr(tokenizer, "chat_template", None) and (folder / _OLDER_TEMPLATE).is_file():
        template = read_json(folder / _OLDER_TEMPLATE).get("chat_template")
        if isinstance(template, str):
            tokenizer.chat_template = template
    return tokenizer

"""The files of a tokenizer: what can be checked before transformers reads them, and what it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.library import tokenizer_growth
from qcore.models.headers import LONGEST_SETTINGS, check_present, is_file_name, read_json

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
_CONFIG, _ADDED = "tokenizer_config.json", "added_tokens.json"
_SETTINGS = (_CONFIG, "special_tokens_map.json", _ADDED)
_MOST_TOKENS = 1 << 24
_OLDER_TEMPLATE = "chat_template.json"  # transformers reads it for processors only
_NO_VOCABULARY = "Couldn't instantiate the backend tokenizer"


def check(folder: Path, name: str) -> None:
    """Raise `InputError` if the folder of the model `name` has no tokenizer, or if one of its files is a
    pointer to Git LFS, is not the JSON object that it must be, names files elsewhere, or describes steps that
    add too much to a text."""
    present = [file for file in (*_VOCABULARIES, _CONFIG) if (folder / file).exists()]
    if not present:
        raise InputError(
            f"{name} has no tokenizer (there is no tokenizer.json), so it cannot read text. Copy "
            "the tokenizer files of the original model into its folder."
        )
    for file in present:
        check_present(folder / file)
    found = {
        file: read_json(folder / file, LONGEST_SETTINGS) for file in _SETTINGS if (folder / file).exists()
    }
    _check_settings(found.get(_CONFIG, {}), name)
    _check_ids(found.get(_CONFIG, {}).get("added_tokens_decoder"), _CONFIG, name)
    ids = {str(index): token for token, index in found.get(_ADDED, {}).items()}
    _check_ids(ids, _ADDED, name)
    if (folder / "tokenizer.json").exists():
        with (folder / "tokenizer.json").open("rb") as opened:
            start = opened.read(64).lstrip()
        if not start.startswith(b"{"):
            raise InputError(
                f"tokenizer.json of {name} does not hold a JSON object: it begins with {start[:20]!r}. "
                "Download it again."
            )
        tokenizer_growth.check_definition(read_json(folder / "tokenizer.json"), name)


def overrides(folder: Path) -> dict[str, None]:
    """Return the entries of tokenizer_config.json that name files, with None in their place: transformers
    would open some of them wherever they lie, but finds the files of the folder without them."""
    settings = read_json(folder / _CONFIG, LONGEST_SETTINGS) if (folder / _CONFIG).exists() else {}
    return {key: None for key in settings if key.endswith("_file")}


def _check_settings(settings: dict, name: str) -> None:
    """Raise `InputError` for entries of tokenizer_config.json through which transformers would open files
    outside of the folder."""
    for key in ("vocab", "merges", "init_inputs"):
        if settings.get(key):
            raise InputError(
                f"tokenizer_config.json of {name} has {key}, which may name any file. The vocabulary belongs "
                "into a file of its own, such as tokenizer.json. Save the tokenizer again."
            )
    versions = settings.get("fast_tokenizer_files") or []
    if not isinstance(versions, list) or not all(map(is_file_name, versions)):
        raise InputError(
            f"tokenizer_config.json of {name} lists files in fast_tokenizer_files that are not beside it. "
            "Save the tokenizer again."
        )


def _check_ids(tokens: object, file: str, name: str) -> None:
    """Raise `InputError` for the id of a token that no vocabulary reaches: transformers fills the ids
    before it."""
    for index in tokens if isinstance(tokens, dict) else ():
        if (
            not str(index).isascii()
            or not str(index).isdigit()
            or not len(index) < 9
            or int(index) >= _MOST_TOKENS
        ):
            raise InputError(
                f"{file} of {name} has a token with the id {index!r}, but ids are whole numbers below "
                f"{_MOST_TOKENS}. Save the tokenizer again."
            )


def reason(error: BaseException) -> str:
    """Return why transformers cannot read a file, in one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if first.startswith(_NO_VOCABULARY):
        return "there is no tokenizer.json and no other file with a vocabulary that it could be made from"
    return first


def settle(tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Return the `tokenizer` of the model `name` with the chat template that only an older file holds. Raise
    `InputError` for a longest text that is not a number, and for steps that add too much to a text."""
    tokenizer_growth.check_tokenizer(tokenizer, name)
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

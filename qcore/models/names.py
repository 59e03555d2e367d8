"""The kinds of model names. On a public server the pattern alone decides, before any file is opened."""

import re
from dataclasses import dataclass
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import expanded, restore
from qcore.base.home import DEFAULT_MODELS, is_public

LONGEST_NAME = 1024
_SHOWN = 60

# The hub's rules: one or two parts of letters, digits, - _ . that do not begin or end with - or . and do not
# contain -- or ..
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_PART}(?:/{_PART})?")
_ADDRESS = re.compile(rf"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/({_PART}(?:/{_PART})?)")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")


@dataclass(frozen=True)
class Name:
    """`kind` is "default", "hub", "folder" or "gguf"; `text` is the name as given. Surrounding blanks belong
    to a path that exists with them; around any other name they are dropped."""

    kind: str
    text: str
    revision: str | None = None


def classify(name: str | Path, revision: str | None = None, *, public: bool | None = None) -> Name:
    """Return the kind of `name`. With `public` (by default on a public server), only default names and hub
    ids are accepted, and the disk is never accessed.

    Raise `InputError` for a name of no kind, and for a revision of a name that is not a hub id.
    """
    public = is_public() if public is None else public
    text = _clean(name, public)
    kind = "default" if text.lower() in DEFAULT_MODELS else _kind(name, text, public)
    if kind == "default":
        text = text.lower()
    if revision is not None and kind != "hub":
        raise InputError(
            f"A revision needs a hub id, but {_show(text)} is a "
            f"{'local ' if kind != 'default' else ''}{kind}. Leave it out."
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(
            f"{_show(revision)} is not a valid revision. Give a branch, a tag or a commit, such as main."
        )
    return Name(kind, text, revision)


def _clean(name: str | Path, public: bool) -> str:
    if not isinstance(name, str | Path):
        raise InputError(
            f"A model name must be a string or a path, not {type(name).__name__}. Give a folder, a GGUF "
            f"file, a hub id or {DEFAULT_MODELS[0]}."
        )
    text = str(name)
    if text != text.strip() and not (text.strip() and not public and _exists(text)):
        text = text.strip()
    if not text:
        raise InputError(f"No model was given. Name a folder, a GGUF file, a hub id, or {DEFAULT_MODELS[0]}.")
    if len(text) > LONGEST_NAME:
        raise InputError(
            f"{_show(text)} has {len(text)} characters. Model names are limited to {LONGEST_NAME} characters."
        )
    if not text.isprintable():
        raise InputError(
            f"{_show(text)} contains invisible characters, which model names do not have. Type the name "
            "again."
        )
    return text


def _exists(text: str) -> bool:
    try:
        return len(text) <= LONGEST_NAME and expanded(text).exists()
    except (OSError, ValueError, RuntimeError):  # not a path: a null byte, an unknown home
        return False


def _kind(name: str | Path, text: str, public: bool) -> str:
    hub_id = _is_hub_id(text)
    if public:
        if match := _ADDRESS.match(text):
            raise InputError(f"{_show(text)} is an address. Give the hub id alone: {match[1]}.")
        if not hub_id:
            raise InputError(
                f"{_show(text)} is not accepted here. Give a hub id such as owner/name, or "
                f"{' or '.join(DEFAULT_MODELS)}."
            )
        return "hub"
    path = expanded(text)
    try:
        if path.is_dir() or restore(path):
            return "folder"
        if path.suffix.lower() == ".gguf" and (path.is_file() or not hub_id):
            return "gguf"
        exists = path.exists()
    except OSError as error:
        raise InputError(f"{_show(text)} cannot be opened: {error.strerror}.") from error
    if exists:
        part = path.name == "config.json" or path.suffix == ".safetensors"
        hint = f" Give its folder: {path.parent}." if part else ""
        raise InputError(
            f"{_show(text)} is a file, but a model is a folder with config.json and *.safetensors, or a "
            f".gguf file.{hint}"
        )
    if match := _ADDRESS.match(text):
        raise InputError(f"{_show(text)} is an address. Give the hub id alone: {match[1]}.")
    if isinstance(name, Path) or not hub_id:
        raise InputError(
            f"{_show(text)} is neither a folder or file here nor a hub id such as owner/name. "
            f"Check the spelling, or use {DEFAULT_MODELS[0]}."
        )
    return "hub"


def _is_hub_id(text: str) -> bool:
    return (
        bool(_HUB_ID.fullmatch(text))
        and ".." not in text
        and "--" not in text
        and not text.endswith((".git", ".ipynb"))
    )


def _show(text: str) -> str:
    """Return `text` for a message: quoted, invisible characters escaped, shortened."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")

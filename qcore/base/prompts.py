"""Prompts for generation: the packaged ones, or any file of the forms that data sets of the field use.

    text file            one prompt per line
    JSON lines or list   texts, or objects with one of `KEYS`; "instruction" with its "input" below
    CSV, TSV             a column called like one of `KEYS`
    dialogues            "messages" (role, content), "conversations" (from, value), or "turns" (the first one)

Answers at the end of a dialogue are left out: the model writes the answer. Ids come from "id", "question_id",
"task_id" or "custom_id", kinds from "kind" or "category"; without an id, prompts are counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcore.base import entries
from qcore.base.entries import Entry
from qcore.base.errors import InputError
from qcore.base.files import asset, expanded
from qcore.base.strict_json import repeated
from qcore.base.text_files import digest_record, read_text

KEYS = ("text", "prompt", "instruction", "question", "query", "input")
LARGEST = 1_000_000  # bytes
MOST = 1000
_PACKAGED = asset("prompts.jsonl")
_IDS = ("id", "question_id", "task_id", "custom_id")
_DIALOGUES = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
_LOOKS = '{"text": "…"}'


@dataclass(frozen=True)
class Message:
    """One message of a dialogue; `role` is "user", "assistant", "system", …"""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """`kind` is the skill that the prompt tests ("facts", "arithmetic", "code", "summary", "language"; "own"
    in a user's file). With `messages`, the prompt is that dialogue, and `text` shows it."""

    id: str
    kind: str
    text: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """The prompts of one file, its `name`, the SHA-256 of the text that was read, and the line ends that were
    changed for it."""

    name: str
    sha256: str
    prompts: tuple[Prompt, ...]
    line_ends: Mapping[str, int] = field(default_factory=dict)

    @property
    def record(self) -> dict:
        """The JSON-ready identity of the prompts."""
        return digest_record(self.name, self.sha256, self.line_ends)


class _Heading:
    """The columns of a table of prompts."""

    needed = f"a column called {', '.join(KEYS[:-1])} or {KEYS[-1]}"

    def fits(self, columns: Sequence[str]) -> bool:
        """Return whether one of them holds prompts."""
        return bool(set(KEYS) & set(columns))


def load_prompts(source: str | Path | None = None) -> Prompts:
    """Return the packaged evaluation prompts, or those in a user's file.

    Raise `InputError` naming the line that cannot be used, and what it holds.
    """
    path = _PACKAGED if source is None else expanded(source)
    file = read_text(path, LARGEST, "prompts")
    if path.suffix.lower() in (*entries.JSONS, *entries.TABLES):
        found = [_prompt(entry) for entry in entries.read(file.content, path, _LOOKS, _Heading())]
    else:
        lines = enumerate(file.content.split("\n"), 1)
        found = [Prompt(str(number), "own", line) for number, line in lines if line.strip()]
    if not found:
        raise InputError(f"{path.name} holds no prompts. Write one per line.")
    if len(found) > MOST:
        raise InputError(f"{path.name} holds {len(found)} prompts, but at most {MOST} are allowed.")
    ids = [prompt.id for prompt in found]
    if len(set(ids)) < len(ids):
        raise InputError(f"{path.name} uses the id {entries.shown(repeated(ids))} twice.")
    name = "packaged prompts" if source is None else path.name
    return Prompts(name, hashlib.sha256(file.content.encode()).hexdigest(), tuple(found), file.line_ends)


def _prompt(entry: Entry) -> Prompt:
    value, where, number = entry.value, entry.where, str(entry.number)
    if isinstance(value, str):
        return Prompt(number, "own", _text(value, where, "text"))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _dialogue(value, where, number, "own")
    if not isinstance(value, dict):
        raise _unreadable(value, where)
    key, given = entries.first_key(value, _IDS)
    name = number if given == "" else entries.name_of(given, where, key, number)
    kind = value.get("kind", "own") or "own"
    if not isinstance(kind, str):
        raise InputError(f"{where} has kind = {entries.shown(kind)}, but it must be a text.")
    if kind == "own" and isinstance(value.get("category"), str) and value["category"].strip():
        kind = value["category"]
    if isinstance(value.get("body"), dict) and "messages" in value["body"]:  # a request to a server
        value = value["body"]
    for key in _DIALOGUES:
        if isinstance(value.get(key), list):
            return _dialogue(value[key], where, name, kind)
    if isinstance(value.get("turns"), list) and value["turns"]:
        first = _text(value["turns"][0], where, "turns")
        return _dialogue([{"role": "user", "content": first}], where, name, kind)
    present = [key for key in KEYS if key in value]
    if not present:
        raise _unreadable(value, where)
    key = present[0]
    if isinstance(value[key], list) and value[key] and isinstance(value[key][0], dict):
        return _dialogue(value[key], where, name, kind)
    text = _text(value[key], where, key)
    if key == "instruction" and isinstance(value.get("input"), str) and value["input"].strip():
        text = f"{text}\n\n{value['input']}"
    return Prompt(name, kind, text)


def _text(value: Any, where: str, key: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    found = "it is blank" if isinstance(value, str) else f"its value is {entries.shown(value)}"
    raise InputError(f'{where} has no "{key}": {found}. Each line should look like {_LOOKS}.')


def _unreadable(value: Any, where: str) -> InputError:
    return InputError(
        f'{where} has no "text", and none of {", ".join(KEYS[1:])} or messages: {entries.keys_of(value)}. '
        f"Each line should look like {_LOOKS}."
    )


def _dialogue(messages: list[Any], where: str, name: str, kind: str) -> Prompt:
    """Return a dialogue up to the last message that is not the model's."""
    found = [_message(message, where) for message in messages]
    while found and found[-1].role == "assistant":
        found.pop()
    if not any(message.role == "user" for message in found):
        raise InputError(
            f"{where} is a dialogue without a message of the user, so nothing is to be answered."
        )
    shown = found[0].content if len(found) == 1 else "\n".join(f"{m.role}: {m.content}" for m in found)
    return Prompt(name, kind, shown, tuple(found))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise InputError(f"{where} has a message that is {entries.shown(message)}, not a role and a content.")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # parts
        kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
        if set(kinds) != {"text"}:
            raise InputError(
                f"{where} has a message with parts other than text ({', '.join(map(str, kinds))}), which "
                "cannot be sent."
            )
        content = "".join(str(part.get("text", "")) for part in content)
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _KNOWN_ROLES or not isinstance(content, str):
        raise InputError(
            f"{where} has a message that cannot be used: {entries.keys_of(message)}, its role is "
            f"{entries.shown(role)}. Each should have a role ({', '.join(_KNOWN_ROLES)}) and a text as "
            "content."
        )
    return Message(role, content)

"""Multiple-choice questions: the packaged ones, or any file of question, choices and answer.

    JSON lines or list    {"question": "The opposite of hot is", "choices": ["cold", "tall"], "answer": 0}
    CSV with a heading    question, answer, and either choices (separated by |) or one column per choice:
                          A, B, C … or choice1 …

The answer is the text of a choice, its letter, or its number from 0, tried in this order; a JSON number is
always an index. The model reads the question verbatim: a frame such as "Question: … Answer:", or examples
before it, must be in the file.
"""

import csv
import hashlib
import io
import json
import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.base.files import asset
from qcore.base.texts import read_text_file

DEFAULT = "default"
PACKAGED = asset("questions.jsonl")
LARGEST, MOST_QUESTIONS, MOST_CHOICES = 20_000_000, 10_000, len(string.ascii_uppercase)
_CHOICE = re.compile(r"[A-Za-z]|choice[ _-]?\w+", re.IGNORECASE)
_LOOKS = '{"question": "…", "choices": ["…", "…"], "answer": 0}'


@dataclass(frozen=True)
class Question:
    """A question; `answer` is the index of the correct one of `choices`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Questions:
    """The questions of one file, its `name` and the SHA-256 of its content."""

    name: str
    sha256: str
    questions: tuple[Question, ...]

    @property
    def chance(self) -> float:
        """Return the expected accuracy of guessing."""
        return sum(1 / len(question.choices) for question in self.questions) / len(self.questions)


def load_questions(source: str | Path | None = None) -> Questions:
    """Read the questions in the file `source`; "default" or None are the packaged ones.

    Raise `InputError` for a file that cannot be read, and for an invalid question, with its number.
    """
    own = None if source is None or source == DEFAULT else Path(source).expanduser()
    path = own or PACKAGED
    text = read_text_file(path, LARGEST, "questions")
    questions = [_question(entry, number, path.name) for number, entry in enumerate(_entries(text, path), 1)]
    if not questions:
        raise InputError(f"{path.name} holds no questions. Each should look like {_LOOKS}.")
    if len(questions) > MOST_QUESTIONS:
        raise InputError(
            f"{path.name} holds {len(questions):,} questions, more than {MOST_QUESTIONS:,}. Cut it."
        )
    name = own.name if own else "general knowledge, packaged"
    return Questions(name, hashlib.sha256(text.encode()).hexdigest(), tuple(questions))


def _entries(text: str, path: Path) -> list[Any]:
    """Return the raw questions, which should be dictionaries with question, choices and answer."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return _from_csv(text, path)
    try:
        if text.lstrip().startswith("["):
            listed: list[Any] = json.loads(text)
            return listed
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not JSON ({error}).") from error
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"Line {number} of {path.name} is not JSON. Each line should look like {_LOOKS}."
                ) from error
    return entries


def _from_csv(text: str, path: Path) -> list[Any]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ","
    )
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
    single = [
        name
        for name in reader.fieldnames or ()
        if _CHOICE.fullmatch((name or "").strip()) and name.strip().lower() != "choices"
    ]
    missing = {"question", "answer"} - set(columns)
    if missing or not ("choices" in columns or single):
        raise InputError(
            f"{path.name} needs the columns question, answer, and choices (with | between) or A, "
            f"B, C …; it has {', '.join(columns)}."
        )
    entries = []
    try:
        for line in reader:
            together = line.get(columns.get("choices", ""))
            choices = (
                together.split("|") if together is not None else [line[name] for name in single if line[name]]
            )
            entries.append(
                {
                    "question": line[columns["question"]],
                    "choices": choices,
                    "answer": line[columns["answer"]],
                    "id": line.get(columns.get("id", "")),
                }
            )
    except csv.Error as error:
        raise InputError(f"Line {reader.line_num} of {path.name} is not CSV ({error}).") from error
    return entries


def _question(entry: Any, number: int, name: str) -> Question:
    where = f"Question {number} of {name}"
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("question"), str)
        or not entry["question"].strip()
    ):
        raise InputError(f'{where} has no "question". Each should look like {_LOOKS}.')
    choices = entry.get("choices")
    if not isinstance(choices, list) or not all(
        isinstance(choice, str) and choice.strip() for choice in choices
    ):
        raise InputError(f'{where} needs "choices": a list of texts, none of them blank.')
    choices = tuple(choice.strip() for choice in choices)
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise InputError(f"{where} has {len(choices)} choices, but between 2 and {MOST_CHOICES} are needed.")
    if len(set(choices)) < len(choices):
        raise InputError(f"{where} has the same choice twice.")
    answer = _answer(entry.get("answer"), choices)
    if answer is None:
        raise InputError(
            f"{where} has the answer {entry.get('answer')!r}: give a choice's text, its letter (A "
            "is the first), or its number from 0."
        )
    return Question(str(entry.get("id") or number), entry["question"], choices, answer)


def _answer(value: object, choices: tuple[str, ...]) -> int | None:
    index = None
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    elif isinstance(value, str):
        value = value.strip()
        if value in choices:
            index = choices.index(value)
        elif len(value) == 1 and value.upper() in string.ascii_uppercase:
            index = string.ascii_uppercase.index(value.upper())
        elif value.isascii() and value.isdigit():
            index = int(value[:4])
    return index if index is not None and 0 <= index < len(choices) else None

"""Multiple-choice questions: the packaged ones, or any file of question, choices and answer.

    JSON lines or list    {"question": "The opposite of hot is", "choices": ["cold", "tall"], "answer": 0}
    CSV with a heading    question, answer, and either choices (separated by |) or one column per choice:
                          A, B, C … or choice1 …
    CSV without one       question, the choices, and the letter of the answer, as MMLU is distributed

The forms of these data sets are read as well: ARC, OpenBookQA and CommonsenseQA (choices with labels of
their own, answerKey), MMLU-Pro and MedQA (options), HellaSwag (ctx, endings, label), PIQA (goal, sol1, sol2,
label), SciQ (correct_answer, distractor1 …) and TruthfulQA (mc1_targets).

Where the choices have labels, the answer is a label. Elsewhere it is the text of a choice, its letter, or its
number from 0, tried in this order. A JSON number is an index. The model reads the question verbatim: a frame
such as "Question: … Answer:", or examples before it, must be in the file.
"""

import csv
import hashlib
import io
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from qcore.base import entries
from qcore.base.entries import Entry
from qcore.base.errors import InputError
from qcore.base.files import asset, expanded
from qcore.base.text_files import digest_record, read_text

DEFAULT = "default"
PACKAGED = asset("questions.jsonl")
LARGEST, MOST_QUESTIONS, MOST_CHOICES = 20_000_000, 10_000, len(string.ascii_uppercase)
_CHOICE = re.compile(r"[a-z]|choice[ _-]?\w+|option[ _-]?\w+", re.IGNORECASE)
_TOGETHER = "choices"  # the column with all choices, separated by bars
_LOOKS = '{"question": "…", "choices": ["…", "…"], "answer": 0}'
_IDS = ("id", "question_id", "qid", "task_id")
_QUESTIONS = ("question", "question_stem", "ctx", "goal", "query", "prompt")
_CHOICES = ("choices", "options", "endings")
_ANSWERS = ("answerKey", "answer_key", "answer_index", "answer_idx", "answer", "label", "gold", "correct")


@dataclass(frozen=True)
class Question:
    """A question; `answer` is the index of the correct one of `choices`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Questions:
    """The questions of one file, its `name`, the SHA-256 of the text that was read, and the line ends that
    were changed for it."""

    name: str
    sha256: str
    questions: tuple[Question, ...]
    line_ends: Mapping[str, int] = field(default_factory=dict)

    @property
    def chance(self) -> float:
        """Return the expected accuracy of guessing."""
        return sum(1 / len(question.choices) for question in self.questions) / len(self.questions)

    @property
    def record(self) -> dict[str, Any]:
        """The JSON-ready identity of the questions."""
        return digest_record(self.name, self.sha256, self.line_ends)


class _Heading:
    """The columns of a table of questions."""

    needed = "the columns question, answer, and choices (with | between) or A, B, C …"

    def fits(self, columns: Sequence[str]) -> bool:
        """Return whether `columns` hold questions, choices and answers."""
        single = [column for column in columns if column != _TOGETHER and _CHOICE.fullmatch(column)]
        return {"question", "answer"} <= set(columns) and (_TOGETHER in columns or bool(single))


def load_questions(source: str | Path | None = None) -> Questions:
    """Read the questions in the file `source`; "default" or None are the packaged ones.

    Raise `InputError` for a file that cannot be read, and for an invalid question, with its place and what it
    holds.
    """
    own = None if source is None or source == DEFAULT else expanded(source)
    path = own or PACKAGED
    file = read_text(path, LARGEST, "questions")
    found = _without_heading(file.content, path)
    if found is None:
        found = entries.read(file.content, path, _LOOKS, _Heading())
        if path.suffix.lower() in entries.TABLES:
            found = [replace(entry, value=_from_cells(entry.value)) for entry in found]
    questions = [_question(entry, number, path) for number, entry in enumerate(found, 1)]
    if not questions:
        raise InputError(f"{path.name} holds no questions. Each should look like {_LOOKS}.")
    if len(questions) > MOST_QUESTIONS:
        raise InputError(
            f"{path.name} holds {len(questions):,} questions, more than {MOST_QUESTIONS:,}. Cut it."
        )
    name = own.name if own else "general knowledge, packaged"
    digest = hashlib.sha256(file.content.encode()).hexdigest()
    return Questions(name, digest, tuple(questions), file.line_ends)


def _without_heading(text: str, path: Path) -> list[Entry] | None:
    """Return the entries of a table without a heading, as MMLU is distributed: a question, at least two
    choices, and the letter of the answer in every line. None for any other file."""
    if path.suffix.lower() not in entries.TABLES:
        return None
    for delimiter in ",\t;":
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 0
        letters = string.ascii_uppercase[: width - 2]
        if width >= 4 and all(len(row) == width and row[-1].strip() in tuple(letters) for row in rows):
            return [
                Entry(f"Question {number} of {path.name}", number, _of_row(row))
                for number, row in enumerate(rows, 1)
            ]
    return None


def _of_row(row: list[str]) -> dict[str, Any]:
    return {"question": row[0], "choices": row[1:-1], "answerKey": row[-1].strip()}


def _question(entry: Entry, number: int, path: Path) -> Question:
    line = "" if entry.number == number else f" (line {entry.number})"
    where, value = f"Question {number} of {path.name}{line}", entry.value
    stem = _stem(value)
    if not isinstance(stem, str) or not stem.strip():
        found = entries.keys_of(value) if stem is None else f"its value is {entries.shown(stem)}"
        raise InputError(f'{where} has no "question": {found}. Each should look like {_LOOKS}.')
    labels, given, answer = _choices(value)
    choices = _checked_choices(given, where, value)
    index = _answer(answer, labels, choices, given, where)
    if index is None:
        raise InputError(
            f"{where} has the answer {entries.shown(answer)}: give a choice's text, its letter (A "
            "is the first), or its number from 0."
            + (f" Its labels are {', '.join(map(str, labels))}." if labels else "")
        )
    key, name = entries.first_key(value, _IDS)
    return Question(entries.name_of(name, where, key, str(number)), stem, choices, index)


def _from_cells(cells: dict[str, str]) -> dict[str, Any]:
    """Return the question in a line of a table with a heading."""
    together = cells.get(_TOGETHER)
    single = [cell for name, cell in cells.items() if name != _TOGETHER and _CHOICE.fullmatch(name) and cell]
    made: dict[str, Any] = {
        "question": cells.get("question", ""),
        "choices": single if together is None else together.split("|"),
        "answer": cells.get("answer"),
    }
    if name := cells.get("id", "").strip():
        made["id"] = name
    return made


def _stem(value: Any) -> Any:
    """Return the question's text; None if there is none."""
    if not isinstance(value, dict):
        return None
    key = next((key for key in _QUESTIONS if key in value), None)
    stem = None if key is None else value[key]
    return stem.get("stem") if isinstance(stem, dict) else stem  # ARC as first published


def _choices(value: dict[str, Any]) -> tuple[list[Any], Any, Any]:
    """Return the labels of the choices (empty: they have none), the choices, and the answer."""
    answer = next((value[key] for key in _ANSWERS if key in value), None)
    if isinstance(value.get("mc1_targets"), dict):
        given, flags = value["mc1_targets"].get("choices"), value["mc1_targets"].get("labels")
        right = [i for i, flag in enumerate(flags if isinstance(flags, list) else []) if flag == 1]
        return [], given, right[0] if len(right) == 1 else flags
    if "sol1" in value and "sol2" in value:
        return [], [value["sol1"], value["sol2"]], answer
    if "correct_answer" in value and "distractor1" in value:
        wrong = [value[key] for key in sorted(value) if key.startswith("distractor")]
        return [], [value["correct_answer"], *wrong], 0
    inner = value["question"] if isinstance(value.get("question"), dict) else value
    given = next((inner[key] for key in _CHOICES if key in inner), None)
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        labels = given.get("label", given.get("labels"))
        return (labels if isinstance(labels, list) else []), given["text"], answer
    if isinstance(given, dict) and given:
        return list(given), list(given.values()), answer
    if isinstance(given, list) and given and all(isinstance(each, dict) for each in given):
        return [each.get("label") for each in given], [each.get("text") for each in given], answer
    return [], given, answer


def _checked_choices(given: Any, where: str, value: dict[str, Any]) -> tuple[str, ...]:
    if not isinstance(given, list):
        found = entries.keys_of(value) if given is None else f"its value is {entries.shown(given)}"
        raise InputError(f'{where} needs "choices": a list of texts, none of them blank; {found}.')
    texts = []
    for each in given:
        is_number = isinstance(each, int | Decimal) and not isinstance(each, bool)
        text = str(each).strip() if is_number or isinstance(each, str) else ""
        if not text:
            raise InputError(
                f'{where} needs "choices": a list of texts, none of them blank; one is {entries.shown(each)}.'
            )
        texts.append(text)
    if not 2 <= len(texts) <= MOST_CHOICES:
        raise InputError(f"{where} has {len(texts)} choices, but between 2 and {MOST_CHOICES} are needed.")
    if len(set(texts)) < len(texts):
        raise InputError(f"{where} has the same choice twice.")
    return tuple(texts)


def _answer(
    value: object, labels: list[Any], choices: tuple[str, ...], given: list[Any], where: str
) -> int | None:
    """Return the index of the right choice, None if `value` names no choice. Raise `InputError` for a number
    that is both the index of one choice and the text of another."""
    if labels:
        names = [str(label).strip() for label in labels]
        name = str(value).strip()
        if len(names) == len(choices) and names.count(name) == 1 and not isinstance(value, bool | None):
            return names.index(name)
        return choices.index(name) if isinstance(value, str) and name in choices else None
    index = None
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
        same = [i for i, choice in enumerate(given) if type(choice) is int and choice == value]
        if same and 0 <= index < len(choices) and same[0] != index:
            raise InputError(
                f"{where} has the answer {value}, which is the number of one choice ({choices[index]}) and "
                "the text of another. Give its letter (A is the first), or the choice in quotation marks."
            )
        index = same[0] if same else index
    elif isinstance(value, str):
        value = value.strip()
        if value in choices:
            index = choices.index(value)
        elif len(value) == 1 and value.upper() in string.ascii_uppercase:
            index = string.ascii_uppercase.index(value.upper())
        elif value.isascii() and value.isdigit():
            index = int(value[:4])
    return index if index is not None and 0 <= index < len(choices) else None

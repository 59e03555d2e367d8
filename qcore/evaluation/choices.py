"""Multiple choice by likelihood: the model's answer is the choice with the highest likelihood given the
question.

    score(choice)            = Σ log p(token | question, tokens before it)      over the choice's tokens
    score by length          = score / bytes of the choice in UTF-8

The literature uses both scores and both are reported: the plain sum favors short choices, dividing by the
length favors long ones. The length is counted in bytes, not tokens, so that models with different tokenizers
compare (as in lm-evaluation-harness). Question, a blank and choice are tokenized together; the tokens that
all choices of a question have in common at the front count as the question.

Rows are padded on the right. A causal model's predictions do not depend on later tokens, so padding needs no
mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from qcore.base.errors import InputError, RunError
from qcore.base.progress import Progress
from qcore.evaluation.divergence import LogProbabilities
from qcore.evaluation.questions import Question, Questions
from qcore.evaluation.statistics import mcnemar, wilson
from qcore.layers.positions import positions
from qcore.runtime.calls import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ELEMENTS = 1 << 25  # logits of a batch: at most 128 MiB in fp32


@dataclass(frozen=True)
class Share:
    """`right` answers out of all, the accuracy, and its 95 % interval (Wilson)."""

    right: int
    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: Sequence[bool]) -> Share:
        right = sum(hits)
        return cls(right, right / len(hits), *wilson(right, len(hits)))


@dataclass(frozen=True)
class Answers:
    """The choices of a model. `picked` and `picked_by_length` are indices of choices, one per question, by
    the two scores; `scores` holds the plain ones, in nats, one per choice; `right` and `right_by_length` tell
    whether the pick is the `answer`."""

    questions: int
    accuracy: Share
    accuracy_by_length: Share
    answer: list[int]
    picked: list[int]
    picked_by_length: list[int]
    scores: list[list[float]]

    @property
    def right(self) -> list[bool]:
        return [pick == answer for pick, answer in zip(self.picked, self.answer, strict=True)]

    @property
    def right_by_length(self) -> list[bool]:
        return [pick == answer for pick, answer in zip(self.picked_by_length, self.answer, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """Questions answered correctly by the baseline alone (`lost`) or by this model alone (`gained`), and the
    exact p-value of McNemar's test."""

    lost: int
    gained: int
    p: float

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> Change:
        """Compare question by question. Raise `InputError` if the numbers of questions differ."""
        if len(before) != len(after):
            raise InputError(
                f"The baseline answered {len(before)} questions and this model {len(after)}: "
                "they cannot be compared."
            )
        lost = sum(b and not a for b, a in zip(before, after, strict=True))
        gained = sum(a and not b for b, a in zip(before, after, strict=True))
        return cls(lost, gained, mcnemar(lost, gained))


def summary(
    asked: Questions, answers: Answers, baseline: dict[str, list[bool]] | None = None
) -> dict[str, Any]:
    """Return the entry of a row for `answers`: the question file, both accuracies, and the lost and gained
    questions against `baseline` ({"plain", "by_length"}: one truth value per question)."""
    change = (
        {}
        if baseline is None
        else {
            "lost_and_gained": asdict(Change.of(baseline["plain"], answers.right)),
            "lost_and_gained_by_length": asdict(Change.of(baseline["by_length"], answers.right_by_length)),
        }
    )
    return {
        **asked.record,
        "questions": answers.questions,
        "chance": asked.chance,
        "accuracy": asdict(answers.accuracy),
        "accuracy_by_length": asdict(answers.accuracy_by_length),
        **change,
    }


@dataclass(frozen=True)
class _Row:
    """Question `question` with its choice `choice`: token `ids`; the choice begins at `start`."""

    question: int
    choice: int
    ids: list[int]
    start: int


@torch.no_grad()  # not inference_mode: optimum-quanto's int4 tensors fail under it
def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Answer all `questions`, at most `batch` rows at a time (None: as many as fit `ELEMENTS` logits).

    Raise `InputError` if there are no questions, if a question is too long for the model, or if its tokens
    are outside the vocabulary; `RunError` if logits are NaN or infinite.
    """
    if not questions:
        raise InputError("There are no questions to ask.")
    rows = [row for number, question in enumerate(questions) for row in _rows(number, question, tokenizer)]
    _check(model, rows, questions)
    vocabulary = _text_config(model).vocab_size
    scores = [[0.0] * len(question.choices) for question in questions]
    training, done = model.training, 0
    model.eval()
    try:
        for group in _batches(rows, vocabulary, batch):
            for row, score in zip(group, _scores(model, group), strict=True):
                scores[row.question][row.choice] = score
            done += len(group)
            if progress:
                progress(done, len(rows), f"{done} of {len(rows)} choices")
    finally:
        model.train(training)
    lengths = [[len(choice.encode()) for choice in question.choices] for question in questions]
    picked = [_largest(line) for line in scores]
    by_length = [
        _largest([s / n for s, n in zip(line, counts, strict=True)])
        for line, counts in zip(scores, lengths, strict=True)
    ]
    answer = [question.answer for question in questions]
    plain, divided = (
        Share.of([pick == right for pick, right in zip(picks, answer, strict=True)])
        for picks in (picked, by_length)
    )
    return Answers(len(questions), plain, divided, answer, picked, by_length, scores)


def _rows(number: int, question: Question, tokenizer: PreTrainedTokenizerBase) -> list[_Row]:
    """Tokenize the question with each of its choices."""
    front = question.question if question.question[-1].isspace() else question.question + " "
    alone = tokenizer(question.question, verbose=False)["input_ids"]
    whole = [tokenizer(front + choice, verbose=False)["input_ids"] for choice in question.choices]
    start = min(_common(alone, ids) for ids in whole)
    if start == 0:
        if tokenizer.bos_token_id is None:
            raise InputError(
                f"Question {question.id} begins differently with each choice, so there is "
                "nothing to predict it from."
            )
        whole, start = [[tokenizer.bos_token_id, *ids] for ids in whole], 1
    if any(len(ids) <= start for ids in whole):
        raise InputError(f"A choice of question {question.id} has no tokens of its own.")
    return [_Row(number, choice, ids, start) for choice, ids in enumerate(whole)]


def _common(left: list[int], right: list[int]) -> int:
    """Return how many leading tokens both share; the last token of `right` never counts."""
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right) - 1),
    )


def _check(model: PreTrainedModel, rows: list[_Row], questions: Sequence[Question]) -> None:
    config = _text_config(model)
    limit = positions(config)
    for row in rows:
        name = questions[row.question].id
        if limit and len(row.ids) > limit:
            raise InputError(
                f"Question {name} has {len(row.ids)} tokens with its choice, but this model can read {limit}."
            )
        if max(row.ids) >= config.vocab_size:
            raise InputError(
                f"The tokenizer gives token {max(row.ids)}, but the model knows only "
                f"{config.vocab_size}: they do not match."
            )


def _text_config(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _batches(rows: list[_Row], vocabulary: int, most: int | None) -> list[list[_Row]]:
    """Batch rows of similar length, the longest first, so that a batch that does not fit memory fails at
    once."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        width = len(groups[-1][0].ids) if groups else 0
        full = (
            not groups
            or (len(groups[-1]) + 1) * width * vocabulary > ELEMENTS
            or (most is not None and len(groups[-1]) >= most)
        )
        if full:
            groups.append([])
        groups[-1].append(row)
    return groups


def _scores(model: PreTrainedModel, rows: list[_Row]) -> list[float]:
    """Return the plain score of each row, in nats."""
    width, device = len(rows[0].ids), device_of(model)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device)
    logits = model(input_ids=ids, use_cache=False).logits
    scores = []
    for line, row in zip(logits, rows, strict=True):
        targets = torch.tensor(row.ids[row.start :], device=device)
        scores.append(
            -float(
                LogProbabilities(line[row.start - 1 : len(row.ids) - 1].float().clone()).nll(targets).sum()
            )
        )
    return scores


def _largest(values: list[float]) -> int:
    """Return the index of the largest score, the first of equals. Raise `RunError` if a score is NaN."""
    if any(value != value for value in values):
        raise RunError("A choice's likelihood is not a number: the model has failed.")
    return max(range(len(values)), key=values.__getitem__)

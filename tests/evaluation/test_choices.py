"""Answers by likelihood against one forward pass per choice, and against models with known preferences."""

import pytest
import tiny
import torch

from qcore.base.errors import InputError, RunError
from qcore.evaluation.choices import Change, ask, summary
from qcore.evaluation.questions import Question, Questions

TOKENIZER = tiny.tokenizer()
QUESTIONS = [
    Question("1", "The opposite of hot is", ("warm", "cold", "a very long answer indeed"), 1),
    Question("2", "Two and two make", ("five", "four"), 1),
    Question("3", "x", ("y", "zz", "zzz", "q"), 0),
    Question("4", "A line that ends in a break\n", ("no blank in front", "ja"), 0),
]


def tokens(text):
    return TOKENIZER(text)["input_ids"]


def one_by_one(model, question):
    """Return the score of each choice, in nats, from a separate pass."""
    front = question.question if question.question.endswith("\n") else question.question + " "
    scores = []
    for choice in question.choices:
        ids, start = torch.tensor([tokens(front + choice)]), len(tokens(question.question))
        log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        scores.append(sum(log_p[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
    return scores


@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
@pytest.mark.parametrize("batch", [None, 1, 3])
@torch.no_grad()
def test_scores_are_those_of_single_passes_whatever_the_batch(kind, batch):
    model = tiny.sharp(kind)
    answers = ask(model, TOKENIZER, QUESTIONS, batch=batch)
    for question, scores, pick, by_length in zip(
        QUESTIONS, answers.scores, answers.picked, answers.picked_by_length, strict=True
    ):
        expected = one_by_one(model, question)
        lengths = [len(choice.encode()) for choice in question.choices]
        assert scores == pytest.approx(expected, rel=1e-4)
        assert pick == max(range(len(expected)), key=expected.__getitem__)
        assert by_length == max(range(len(expected)), key=lambda i: expected[i] / lengths[i])


class Fixed(torch.nn.Module):
    """A model with the same logits for every token."""

    def __init__(self, logits):
        super().__init__()
        self.config = tiny.CONFIGS["llama"]
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids, use_cache=False):
        return type("Output", (), {"logits": self.logits.expand(*input_ids.shape, -1)})


def test_a_model_that_guesses_prefers_the_shortest():
    """A model with all-zero logits: each byte costs ln 258, so the score depends on the length of the choice
    and the blank before it."""
    answers = ask(Fixed(torch.zeros(tiny.VOCABULARY)), TOKENIZER, QUESTIONS)
    cost = -torch.tensor(float(tiny.VOCABULARY)).log().item()
    assert answers.scores[0] == pytest.approx([cost * (1 + len(choice)) for choice in QUESTIONS[0].choices])
    assert (
        answers.picked == [0, 0, 0, 1]
        and answers.accuracy.right == 1
        and answers.right == [False, False, True, False]
    )
    assert answers.picked_by_length[0] == 2  # the blank weighs least on the longest
    assert 0 < answers.accuracy.low < 0.25 < answers.accuracy.high < 1


@pytest.mark.row("40")
def test_logits_that_are_nan_are_an_error():
    with pytest.raises(RunError, match="NaN"):
        ask(Fixed(torch.full((tiny.VOCABULARY,), torch.nan)), TOKENIZER, QUESTIONS)


def test_what_cannot_be_asked():
    model = tiny.model("llama")
    with pytest.raises(InputError, match="no questions"):
        ask(model, TOKENIZER, [])
    with pytest.raises(
        InputError, match="Question long has 60. tokens with its choice, but this model can read 512"
    ):
        ask(model, TOKENIZER, [Question("long", "a" * 600, ("b", "c"), 0)])

    def another(text, **options):
        return {"input_ids": [ord(letter) + 200 for letter in text]}

    with pytest.raises(InputError, match="they do not match"):
        ask(model, another, [Question("1", "abc", ("b", "c"), 0)])


@torch.no_grad()
def test_a_question_that_merges_with_its_choices_begins_with_the_token_that_begins_texts():
    class Merging:
        bos_token_id = 256

        def __call__(self, text, **options):
            return {"input_ids": [7] if text == "x" else [8, 9, ord(text[-1])]}

    model = tiny.sharp("llama")
    (scores,) = ask(model, Merging(), [Question("1", "x", ("y", "z"), 0)]).scores
    log_p = model(input_ids=torch.tensor([[256, 8, 9, ord("y")]])).logits[0].double().log_softmax(-1)
    assert scores[0] == pytest.approx(
        sum(log_p[i, token].item() for i, token in enumerate([8, 9, ord("y")])), rel=1e-4
    )
    Merging.bos_token_id = None
    with pytest.raises(InputError, match="nothing to predict it from"):
        ask(model, Merging(), [Question("1", "x", ("y", "z"), 0)])


def test_training_mode_comes_back_and_progress_counts():
    model, steps = tiny.model("llama").train(), []
    ask(model, TOKENIZER, QUESTIONS, batch=4, progress=lambda done, total, words: steps.append((done, total)))
    assert model.training and steps[-1] == (11, 11)


def test_lost_and_gained_by_hand():
    change = Change.of([True, True, True, False, False], [True, False, False, True, False])
    assert (change.lost, change.gained, change.p) == (2, 1, 1.0)
    with pytest.raises(InputError, match="answered 1 questions and this model 2"):
        Change.of([True], [True, False])


def test_a_summary_compares_with_the_baseline():
    answers = ask(Fixed(torch.zeros(tiny.VOCABULARY)), TOKENIZER, QUESTIONS)
    asked = Questions("q", "0" * 64, tuple(QUESTIONS))
    alone = summary(asked, answers)
    assert (
        alone["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4 + 1 / 2) / 4)
        and "lost_and_gained" not in alone
    )
    against = summary(asked, answers, {"plain": [True] * 4, "by_length": answers.right_by_length})
    assert (
        against["lost_and_gained"] == {"lost": 3, "gained": 0, "p": pytest.approx(0.25)}
        and against["lost_and_gained_by_length"]["p"] == 1
    )

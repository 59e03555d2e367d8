"""Question files: every supported form, and an error message for each invalid one."""

import json

import pytest

from qcore.base.errors import InputError
from qcore.evaluation.questions import Question, load_questions

GOOD = {"question": "The opposite of hot is", "choices": ["warm", "cold"], "answer": 1}
WORDS = "The opposite of hot is"


@pytest.fixture
def file(tmp_path):
    def write(content, name="q.jsonl"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_the_packaged_questions():
    asked = load_questions()
    assert asked == load_questions("default") and len(asked.sha256) == 64
    assert (
        60 <= len(asked.questions) == len({question.id for question in asked.questions})
        and asked.chance == 0.25
    )
    assert len({question.question for question in asked.questions}) == len(asked.questions)
    places = [question.answer for question in asked.questions]
    assert all(10 <= places.count(place) <= 22 for place in range(4)), "no place is the better guess"
    length = [len(q.choices[q.answer]) - sum(map(len, q.choices)) / len(q.choices) for q in asked.questions]
    assert abs(sum(length) / len(length)) < 1, "right choices are as long as wrong ones"


@pytest.mark.parametrize(
    ("answer", "index"),
    [(0, 0), (1, 1), ("cold", 1), (" cold ", 1), ("B", 1), ("a", 0), ("1", 1), ("0", 0)],
    ids=repr,
)
def test_how_an_answer_may_be_given(file, answer, index):
    assert load_questions(file({**GOOD, "answer": answer})).questions == (
        Question("1", WORDS, ("warm", "cold"), index),
    )


def test_the_text_of_a_choice_goes_before_its_number(file):
    (question,) = load_questions(
        file({"question": "One and one is", "choices": ["1", "2", "3"], "answer": "2"})
    ).questions
    assert question.answer == 1
    (question,) = load_questions(
        file({"question": "One and one is", "choices": ["1", "2", "3"], "answer": 2})
    ).questions
    assert question.answer == 2


FILES = {
    "JSON lines": ("q.jsonl", json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "id": "x"}) + "\n"),
    "a JSON list": ("q.json", json.dumps([GOOD, {**GOOD, "id": "x"}], indent=1)),
    "CSV with letters": (
        "q.csv",
        f"id,question,A,B,answer\n,{WORDS},warm,cold,B\nx,{WORDS},warm,cold,cold\n",
    ),
    "CSV with bars": ("q.csv", f"question,choices,answer,id\n{WORDS},warm|cold,1,\n{WORDS},warm|cold,B,x\n"),
    "tabs, a choice fewer": (
        "q.tsv",
        f"Question\tchoice1\tchoice2\tchoice3\tAnswer\tID\n{WORDS}\twarm\tcold\t\tB\t\n{WORDS}\twarm\tcold\t\t1\tx\n",
    ),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_forms_of_files(file, name, content):
    asked = load_questions(file("\ufeff" + content, name))
    assert [question.id for question in asked.questions] == ["1", "x"] and asked.name == name
    assert all((question.choices, question.answer) == (("warm", "cold"), 1) for question in asked.questions)


@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        ("", "q.jsonl", "holds no questions"),
        ("[]", "q.json", "holds no questions"),
        ("nothing", "q.jsonl", "Line 1 of q.jsonl is not JSON"),
        ("[{]", "q.json", "is not JSON"),
        (json.dumps(GOOD) + "\n3", "q.jsonl", 'Question 2 of q.jsonl has no "question"'),
        ({**GOOD, "question": " "}, "q.jsonl", 'has no "question"'),
        ({**GOOD, "choices": "warm"}, "q.jsonl", "a list of texts"),
        ({**GOOD, "choices": ["warm", ""]}, "q.jsonl", "a list of texts"),
        ({**GOOD, "choices": ["cold"]}, "q.jsonl", "has 1 choices"),
        ({**GOOD, "choices": [str(i) for i in range(27)]}, "q.jsonl", "has 27 choices"),
        ({**GOOD, "choices": ["cold", "cold "]}, "q.jsonl", "same choice twice"),
        ({**GOOD, "answer": 2}, "q.jsonl", "the answer 2"),
        ({**GOOD, "answer": -1}, "q.jsonl", "the answer -1"),
        ({**GOOD, "answer": "hot"}, "q.jsonl", "the answer 'hot'"),
        ({**GOOD, "answer": True}, "q.jsonl", "the answer True"),
        ({**GOOD, "answer": None}, "q.jsonl", "the answer None"),
        ("question,answer\na,b\n", "q.csv", "needs the columns question, answer, and choices"),
        ("", "q.csv", "needs the columns"),
        ("question,A,B,answer\nThe opposite\n", "q.csv", "has 0 choices"),
    ],
)
def test_files_that_are_refused(file, content, name, match):
    with pytest.raises(InputError, match=match):
        load_questions(file(content, name))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_questions(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        load_questions(tmp_path)
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        load_questions(tmp_path / "q.jsonl")

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


LETTERS, STEM = ["A", "B"], "The opposite of hot is"
DATA_SETS = {
    "ARC": {
        "id": "q7",
        "question": STEM,
        "choices": {"text": ["warm", "cold"], "label": LETTERS},
        "answerKey": "B",
    },
    "ARC, numbered": {
        "id": "q7",
        "question": STEM,
        "choices": {"text": ["warm", "cold"], "label": ["1", "2"]},
        "answerKey": "2",
    },
    "ARC as first published": {
        "id": "q7",
        "question": {
            "stem": STEM,
            "choices": [{"text": "warm", "label": "A"}, {"text": "cold", "label": "B"}],
        },
        "answerKey": "B",
    },
    "OpenBookQA": {
        "id": "q7",
        "question_stem": STEM,
        "choices": {"text": ["warm", "cold"], "label": LETTERS},
        "answerKey": "B",
    },
    "MMLU": {"id": "q7", "question": STEM, "subject": "x", "choices": ["warm", "cold"], "answer": 1},
    "MMLU-Pro": {
        "question_id": "q7",
        "question": STEM,
        "options": ["warm", "cold"],
        "answer": "B",
        "answer_index": 1,
    },
    "MedQA": {
        "id": "q7",
        "question": STEM,
        "options": {"A": "warm", "B": "cold"},
        "answer": "cold",
        "answer_idx": "B",
    },
    "HellaSwag": {"id": "q7", "ctx": STEM, "endings": ["warm", "cold"], "label": "1"},
    "PIQA": {"id": "q7", "goal": STEM, "sol1": "warm", "sol2": "cold", "label": 1},
    "TruthfulQA": {
        "id": "q7",
        "question": STEM,
        "mc1_targets": {"choices": ["warm", "cold"], "labels": [0, 1]},
    },
}


@pytest.mark.parametrize("entry", DATA_SETS.values(), ids=DATA_SETS)
def test_the_forms_of_data_sets(file, entry):
    assert load_questions(file(entry)).questions == (Question("q7", STEM, ("warm", "cold"), 1),)
    listed = load_questions(file([entry, {**entry, "id": "x"}], "q.json")).questions
    assert [question.answer for question in listed] == [1, 1]


def test_the_wrong_answers_of_sciq(file):
    entry = {"question": STEM, "correct_answer": "cold", "distractor1": "warm", "distractor2": "tall"}
    (question,) = load_questions(file(entry)).questions
    assert question.choices[question.answer] == "cold" and set(question.choices) == {"cold", "warm", "tall"}


def test_mmlu_without_a_heading(file):
    content = f'{STEM},warm,cold,B\n"Two, and two, are",3,4,B\n'
    first, second = load_questions(file(content, "q.csv")).questions
    assert first == Question("1", STEM, ("warm", "cold"), 1)
    assert second == Question("2", "Two, and two, are", ("3", "4"), 1)


@pytest.mark.parametrize("delimiter", [";", "\t"], ids=["semicolons", "tabs"])
def test_other_delimiters(file, delimiter):
    lines = [["id", "question", "A", "B", "answer"], ["q7", "Hot, or warm,", "1,5", "2", "A"]]
    content = "".join(delimiter.join(cells) + "\n" for cells in lines)
    wanted = (Question("q7", "Hot, or warm,", ("1,5", "2"), 0),)
    assert load_questions(file(content, "q.csv")).questions == wanted


def test_choices_that_are_numbers(file):
    (question,) = load_questions(
        file('{"question": "A half is", "choices": [2, 0.50, 1e3], "answer": "0.50"}')
    ).questions
    assert question.choices == ("2", "0.50", "1E+3") and question.answer == 1
    (question,) = load_questions(file({"question": STEM, "choices": [2, 4, 6], "answer": 4})).questions
    assert question.answer == 1  # 4 is the number of no choice
    with pytest.raises(InputError, match="the number of one choice .3. and the text of another"):
        load_questions(file({"question": STEM, "choices": [1, 2, 3], "answer": 2}))


def test_ids(file):
    assert load_questions(file({**GOOD, "id": 0})).questions[0].id == "0"
    for wrong in (None, [1], {}, True, 1.5, " "):
        with pytest.raises(InputError, match="Question 2 of q.jsonl has id = "):
            load_questions(file(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": wrong})))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "score": float("nan")}), "Line 3 of q.jsonl.*NaN"),
        ('{"question": "a\\udc00", "choices": ["b", "c"], "answer": 0}', "Line 1 of q.jsonl holds half"),
        (
            json.dumps({"question": STEM, "passage": "x", "answer": True}),
            "the keys question, passage, answer",
        ),
        (json.dumps({**DATA_SETS["ARC"], "answerKey": ""}), r"the answer ''.*Its labels are A, B"),
        (json.dumps({**DATA_SETS["ARC"], "answerKey": "C"}), "the answer 'C'"),
        (json.dumps({**DATA_SETS["HellaSwag"], "label": -1}), "the answer -1"),
        (json.dumps({**GOOD, "choices": ["a", None]}), "one is None"),
        (json.dumps({"sentence": "The _ is", "option1": "a"}), "has the keys sentence, option1"),
    ],
    ids=["NaN", "half a pair", "no choices", "no answer", "no such label", "a test split", "null", "other"],
)
def test_what_cannot_be_read_says_what_was_found(file, content, match):
    with pytest.raises(InputError, match=match):
        load_questions(file(content))


def test_line_ends_of_other_systems(tmp_path):
    line = json.dumps(GOOD, ensure_ascii=False).replace("hot", "hot\u2028\x85")
    (tmp_path / "unix.jsonl").write_text(f"{line}\n{line}\n")
    (tmp_path / "windows.jsonl").write_bytes(f"{line}\r\n{line}\r\n".encode())
    unix, windows = load_questions(tmp_path / "unix.jsonl"), load_questions(tmp_path / "windows.jsonl")
    assert unix.questions == windows.questions and len(unix.questions) == 2 and unix.sha256 == windows.sha256
    assert windows.record["line_ends_read_as_line_feeds"] == {"CR LF": 2}


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_questions(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        load_questions(tmp_path)
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        load_questions(tmp_path / "q.jsonl")

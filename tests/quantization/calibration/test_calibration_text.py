"""The calibration text, its windows, and the check that it does not overlap the evaluation text."""

import json

import pytest
import tiny
import torch

import qcore
from qcore.base.errors import InputError
from qcore.base.texts import language_reference, text_from_bytes, tokenize
from qcore.quantization.calibration import check_overlap, check_record, load_calibration
from qcore.quantization.calibration.text import OVERLAP, Calibration, docstrings
from qcore.recipes import parse
from qcore.recipes.spec import RunSpec
from qcore.verbs.checks import check
from qcore.verbs.prepare import CalibrationText
from qcore.verbs.quantize import run

PROSE = "".join(
    f"Sentence number {number} says that {number * number} is a square. " for number in range(400)
)


def written(folder, content: str = PROSE, name: str = "own.txt"):
    path = folder / name
    path.write_text(content)
    return path


def test_windows_are_spread_evenly_over_the_text(tmp_path):
    found = load_calibration(written(tmp_path), tiny.tokenizer(), tokens=512, window=128)
    whole = tokenize(PROSE, tiny.tokenizer())
    windows = len(whole) // 128
    assert found.ids.shape == (4, 128)
    for i in range(4):
        start = windows * i // 4 * 128
        assert torch.equal(found.ids[i], whole[start : start + 128])


def test_a_short_text_gives_what_it_has(tmp_path):
    assert load_calibration(
        written(tmp_path, PROSE[:300]), tiny.tokenizer(), tokens=9999, window=128
    ).ids.shape == (2, 128)
    assert load_calibration(written(tmp_path, "Short."), tiny.tokenizer(), window=128).ids.shape == (1, 6)


def test_the_default_needs_no_network_and_shares_nothing_with_the_evaluation_text():
    content = docstrings()
    assert len(content) > 200_000
    assert not set(content.split("\n\n")) & set(language_reference().split("\n\n"))
    found = load_calibration(None, tiny.tokenizer(), tokens=4096)
    reference = text_from_bytes("reference", language_reference().encode())
    check_overlap(
        found, reference.name, reference.sha256, tokenize(reference, tiny.tokenizer(), limit=50_000)
    )


@pytest.mark.parametrize(("shared", "refused"), [(OVERLAP - 1, False), (OVERLAP, True), (4 * OVERLAP, True)])
def test_a_run_of_fifty_shared_tokens_is_refused(shared, refused):
    ids = torch.arange(1000).reshape(2, 500)
    calibration = Calibration("a", "0", ids)
    other = torch.cat((torch.arange(5000, 5100), ids[1, 100 : 100 + shared], torch.arange(6000, 6100)))
    if refused:
        with pytest.raises(InputError, match="run of at least 50 tokens"):
            check_overlap(calibration, "b", "1", other)
    else:
        check_overlap(calibration, "b", "1", other)


def test_a_record_remembers_enough_to_find_long_overlaps():
    ids = torch.randint(0, 50_000, (4, 512), generator=torch.Generator().manual_seed(0))
    record = json.loads(json.dumps(Calibration("a", "0", ids).record))
    assert record["tokens"] == 2048 and record["text"] == {"name": "a", "sha256": "0"}
    check_record(
        record, "b", "1", torch.randint(0, 50_000, (4096,), generator=torch.Generator().manual_seed(1))
    )
    with pytest.raises(InputError, match="overlaps"):
        check_record(record, "b", "1", ids[2, 100:250])
    with pytest.raises(InputError, match="the same text"):
        check_record(record, "b", "0", torch.arange(60))


def test_a_run_that_is_judged_by_its_calibration_text_is_refused_before_it_starts(tmp_path):
    model, text = tiny.checkpoint("llama", tmp_path / "m"), written(tmp_path)
    with pytest.raises(InputError, match="is the evaluation text"):
        check(RunSpec(str(model), ("int4-g64-gptq",), text=str(text), calibration=str(text)))
    check(RunSpec(str(model), ("int4-g64-gptq",), text=str(text)))
    check(RunSpec(str(model), ("int4-g64",), text=str(text), calibration=str(text)))


@pytest.mark.parametrize("content", ["", "  \n "], ids=["empty", "blank"])
def test_texts_without_words_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="empty"):
        load_calibration(written(tmp_path, content), tiny.tokenizer())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.txt"):
        load_calibration(tmp_path / "nowhere.txt", tiny.tokenizer())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("calibration_tokens", 3),
        ("calibration_tokens", 1.5),
        ("calibration_minutes", 0),
        ("calibration_minutes", "x"),
    ],
)
def test_conditions_outside_their_limits_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        RunSpec("m", ("int4-g64-gptq",), **{field: value})


def test_a_saved_model_is_not_judged_by_what_it_was_calibrated_on(tmp_path):
    text, other = (
        written(tmp_path),
        written(tmp_path, PROSE.replace("square", "product of equals"), "other.txt"),
    )
    loaded = qcore.quantize(
        str(tiny.checkpoint("llama", tmp_path / "m")),
        "int4-g64-gptq",
        calibration=text,
        calibration_tokens=1024,
    )
    assert loaded.ledger.calibration["text"]["name"] == "own.txt"
    qcore.save(loaded, tmp_path / "q")
    again = qcore.load(str(tmp_path / "q"))
    assert again.ledger.calibration == loaded.ledger.calibration
    for model in (loaded, again):
        with pytest.raises(InputError, match="must not be evaluated on its calibration text"):
            qcore.evaluate(model, text)
        qcore.evaluate(model, written(tmp_path, "Something else entirely, " * 30, "third.txt"), window=64)
    assert other.exists()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[1, 2]], "has 2 tokens: too short to calibrate on"),
        ([[7] * 300, [7] * 300], "repeats one token 600 times in 600: too uniform to calibrate on"),
        ([list(range(250)) + [3] * 300], "repeats one token 301 times in 550: too uniform"),
        ([list(range(256))], None),
        ([[]], None),
    ],
    ids=["two tokens", "one token", "mostly one", "fine", "an importance matrix"],
)
def test_a_text_too_short_or_too_uniform_gives_a_caution(ids, words):
    caution = Calibration("a.txt", "0" * 64, torch.tensor(ids, dtype=torch.long)).caution
    assert caution is None if words is None else f"The calibration text a.txt {words}" in caution


def test_the_caution_is_with_the_result_of_quantize(tmp_path):
    folder, text = tiny.checkpoint("llama", tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("ab")
    given = CalibrationText(str(text))
    result = run(
        str(folder), parse("int4-g32-gptq"), tmp_path / "made", calibration=given, progress=lambda *_: None
    )
    assert any(note.startswith("The calibration text text.txt has 2 tokens") for note in result["notes"])
    assert "has 2 tokens" in qcore.load(str(tmp_path / "made")).ledger.calibration["caution"]

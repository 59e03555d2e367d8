import pytest

from qcore.base.registry import did_you_mean, unknown


def test_near_names_are_asked_for_and_far_ones_are_not():
    assert did_you_mean("int9", ["int8", "fp32"]) == "Did you mean int8?"
    assert did_you_mean("something else", ["int8", "fp32"]) is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("int9", "Unknown recipe 'int9'. Did you mean int8?"),
        ("something else", "Unknown recipe 'something else'. Known: int8, fp32."),
    ],
)
def test_an_unknown_name_is_one_sentence_and_what_is_known(name, sentence):
    assert str(unknown("recipe", name, ["int8", "fp32"])) == sentence

"""Messages quote what strangers wrote, and stay one printable line."""

import pickle

import pytest

from qcore.base.errors import LONGEST, InputError, RunError, TooLargeError


@pytest.mark.row("16")
@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("a\nb\r\nc", "a\\nb\\r\\nc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("abc\u202edef", "abc\\u202edef"),
        ("\0", "\\x00"),
        ("\ud800", "\\ud800"),
        ("é☃😀 1\xa0GB", "é☃😀 1\xa0GB"),
        ("back\\slash", "back\\slash"),
    ],
    ids=ascii,
)
def test_a_message_is_one_printable_line(quoted, shown):
    for kind in (InputError, TooLargeError, RunError):
        assert str(kind(f"The name {quoted} is unknown.")) == f"The name {shown} is unknown."


def test_a_long_message_keeps_what_is_wrong_and_what_to_do():
    words = str(InputError(f"The value {'x' * 10**6} is too long. Shorten it."))
    assert (
        words.startswith("The value xxx")
        and words.endswith("xxx is too long. Shorten it.")
        and " … " in words
    )
    assert len(words) <= LONGEST + 3
    assert len(str(InputError("\n" * 10**6))) <= 5 * LONGEST  # escapes are cut, too


def test_errors_survive_a_way_between_processes():
    assert str(pickle.loads(pickle.dumps(InputError("a\nb")))) == "a\\nb"

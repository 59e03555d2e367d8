"""Sentences for people belong to no face: the engine names options, never a command line, a page or a
button."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ERRORS = ("InputError", "TooLargeError", "UnavailableError", "NotAppliedError", "RunError")
FACE = re.compile(r"(?<![\w-])--[a-z]|python -m qcore|\bbutton\b|\bclick\b|\bthe page\b", re.IGNORECASE)
# what only a command says, and what tells people how to install or start another program
OF_COMMANDS = ("cli",)
OTHER_PROGRAMS = re.compile(r"pip install|ray start|llama-gguf-split")
SOURCES = [
    path
    for path in sorted((ROOT / "qcore").rglob("*.py"))
    if path.relative_to(ROOT / "qcore").parts[0] not in OF_COMMANDS
]


def sentences(path: Path):
    """The words of each error that a file raises, placeholders left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS:
            parts = [
                part.value for each in node.args for part in ast.walk(each) if isinstance(part, ast.Constant)
            ]
            yield node.lineno, "".join(part for part in parts if isinstance(part, str))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_of_the_engine_speaks_of_one_face(path):
    wrong = [
        (line, words)
        for line, words in sentences(path)
        if FACE.search(words) and not OTHER_PROGRAMS.search(words)
    ]
    assert not wrong


def test_a_sentence_of_one_face_would_be_found():
    for words in (
        "Leave out --stream.",
        "See python -m qcore runs.",
        "Click the button.",
        "Use the page Plan.",
    ):
        assert FACE.search(words)
    assert not FACE.search("Leave out the recipe -- it is a well-known-name.")

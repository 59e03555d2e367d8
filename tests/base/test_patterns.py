"""Regular expressions of untrusted files: equal to Python's, in a bounded number of steps."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore.base import patterns
from qcore.base.errors import InputError

NAMES = [
    "",
    "lm_head",
    "model.layers.0.mlp.down_proj",
    "model.layers.12.self_attn.q_proj",
    "model.layers.3.mlp.experts.17.up_proj",
    "ends\n",
]
USED = [  # from configs on the hub, and every construct
    "lm_head",
    r".*lm_head",
    r"model\.layers\.\d+\.mlp\..*",
    r".*\.(gate|up|down)_proj$",
    r"^(?!.*(q_proj|k_proj)).*",
    r"model\.layers\.(?:0|1|2)\.",
    r".*experts\.[0-9]+\.(?:up|down)_proj",
    r"(?:lm_head)(?:(?<=\.)|(?=\.|$))",
    r"model(\.\w+)*",
    r"(model|model\.layers)+\.[^.]*",
    r".*?\.(\d{1,2})\.\w+?_",
    r"\S+\s?\Z",
    r"\A\w+\b\W\B.{2,5}[^\d]",
    r"[a-l\d_]{3,}|ends",
    r"ends$",
    r"",
    r"(.?)*x?",
    r"(?:(a*)*)*model",
    r"(?<!\.)\w*(?<=d)",
]
EXPONENTIAL = [
    (r"(a+)+$", "a" * 1000 + "!"),
    (r"(a|a)*$", "a" * 1000 + "!"),
    (r"(a|aa)+$", "a" * 1000 + "!"),
    ("a?" * 200 + "a" * 200, "a" * 199),
    (".*" * 100 + "x", "a" * 1000),
    (r"(.*a){12}x", "a" * 60),
    ("(a|b|ab)" * 60 + "x", "ab" * 100),
]


@pytest.mark.parametrize("pattern", USED)
def test_patterns_in_use_match_as_python_matches_them(pattern):
    for name in NAMES:
        assert patterns.matches(pattern, name) == bool(re.match(pattern, name)), name


def _grown(inner):
    repeated = st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{2,}"]))
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: "(" + "|".join(each) + ")"),
        repeated.map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.tuples(st.sampled_from(["(?=", "(?!"]), inner).map(lambda pair: f"{pair[0]}{pair[1]})"),
    )


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", "^", "$", r"\b", r"\B", ""]),
    _grown,
    max_leaves=6,
)


@given(EXPRESSIONS, st.text("ab.1", min_size=1, max_size=8))  # Python 3.14 changed \\B in an empty text
def test_any_expression_matches_as_python_matches_it(pattern, name):
    assert patterns.matches(pattern, name) == bool(re.match(pattern, name))


@pytest.mark.parametrize("pattern, name", EXPONENTIAL, ids=[pattern[:12] for pattern, _ in EXPONENTIAL])
def test_expressions_that_take_python_years_end(pattern, name):
    assert not patterns.matches(pattern, name)


def test_steps_are_bounded():
    with pytest.raises(InputError, match="takes more than 20,000 steps"):
        patterns.matches("(?:(?=(?:aa)*)a)*b", "a" * 1000)


@pytest.mark.parametrize(
    "pattern, message",
    [
        (r"(a)\1", "uses groupref"),
        (r"(?i)a", "inline flags"),
        (r"(?i:a)", "inline flags"),
        (r"(?>a)b", "atomic group"),
        (r"a++b", "possessive repeat"),
        (r"(a)?(?(1)b|c)", "groupref exists"),
        ("(", "not a valid regular expression"),
        ("(" * 20 + ")" * 20, "more than 16 levels"),
        ("(" * 500 + ")" * 500, "regular expression"),
        ("a" * 2000, "limited to 1024 characters"),
        ("a{99999999999999999999}", "not a valid regular expression"),
    ],
    ids=[
        "reference",
        "flags",
        "scoped",
        "atomic",
        "possessive",
        "condition",
        "open",
        "deep",
        "deepest",
        "long",
        "count",
    ],
)
def test_what_is_refused(pattern, message):
    with pytest.raises(InputError, match=message):
        patterns.check(pattern)


def test_long_names_are_refused():
    with pytest.raises(InputError, match="limited to 1024 characters"):
        patterns.matches("a", "a" * 1025)

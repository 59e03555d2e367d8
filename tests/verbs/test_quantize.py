import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore.verbs.record import safe_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m", "smollm2-135m-int8"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m-int8"),
        ("../../etc/", "etc-int8"),
        ("C:\\models\\CON", "con-int8"),
        ("..", "model-int8"),
        ("x" * 300, "x" * 80 + "-int8"),
    ],
)
def test_names(model, name):
    assert safe_name(model, "int8") == name


@pytest.mark.row("18")
@given(st.text())
def test_any_model_gives_a_harmless_name(model):
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,80}-int8", safe_name(model, "int8"))

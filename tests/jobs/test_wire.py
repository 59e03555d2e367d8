"""Plain objects cross the pipe between server and worker unchanged, and nothing else does."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from qcore.jobs import wire
from qcore.models.headers import TensorInfo
from qcore.recipes import parse
from qcore.recipes.spec import RunSpec

SPEC = RunSpec("a/model", (parse("int4-g64-gptq"), parse("auto-4.25bpw"), parse("bnb-nf4")), text="x\ud800\0")


INFO = TensorInfo("F32", (2,), 8, "f", 0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        1.5,
        float("inf"),
        "\u2028\ud800\0",
        Path("/a/b"),
        {"a": (1, [2])},
        SPEC,
        [TensorInfo("F32", (2,), 8, "f", 0)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_objects_come_back_equal(value):
    text = wire.pack(value)
    assert text.isascii() and "\n" not in text and wire.unpack(text) == value


class Hostile:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize(
    "value", [Hostile(), print, ValueError("x"), pickle.Unpickler], ids=["call", "function", "error", "class"]
)
@pytest.mark.parametrize("imports", [False, True])
def test_a_function_or_another_class_is_refused(value, imports):
    text = wire.pack(value)
    with pytest.raises(pickle.UnpicklingError, match="must not cross the pipe"):
        wire.unpack(text, imports=imports)


def test_an_answer_imports_nothing():
    from qcore.verbs.lesson_weights import Sample

    text = wire.pack(Sample("a", None, 1))
    code = (
        "import sys; from qcore.jobs import wire\n"
        "try: wire.unpack(sys.argv[1])\n"
        "except Exception as error: print(error, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "qcore.verbs.lesson_weights.Sample must not cross the pipe False"

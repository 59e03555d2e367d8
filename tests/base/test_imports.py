"""`after_import` runs its action once, whichever import comes first."""

import subprocess
import sys

import pytest

PRELUDE = """
import sys
from qcore.base.imports import after_import
calls = []
"""


@pytest.mark.parametrize(
    "code",
    [
        "import json.tool; after_import('json.tool', lambda: calls.append('json.tool' in sys.modules))",
        "after_import('json.tool', lambda: calls.append(hasattr(sys.modules['json.tool'], 'main')))\n"
        "assert not calls\nimport json.tool\nimport json.tool",
        "after_import('json.tool', lambda: calls.append(True))\nimport importlib.util\n"
        "assert importlib.util.find_spec('json.tool').name == 'json.tool' and not calls\n"
        "import json.tool, importlib\nimportlib.reload(json.tool)",
    ],
    ids=["imported before", "imported later", "searched first, reloaded later"],
)
def test_the_action_runs_once_after_the_import(code):
    ends = (
        "import json.tool, inspect\nassert calls == [True], calls\n"
        "assert 'argparse' in inspect.getsource(json.tool)"
    )
    subprocess.run([sys.executable, "-c", f"{PRELUDE}\n{code}\n{ends}"], check=True)


def test_a_package_that_is_missing_stays_missing():
    code = (
        "after_import('json.nowhere', lambda: calls.append(1))\n"
        "try:\n import json.nowhere\nexcept ImportError:\n pass\nassert not calls"
    )
    subprocess.run([sys.executable, "-c", f"{PRELUDE}\n{code}"], check=True)

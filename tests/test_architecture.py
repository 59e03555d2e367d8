"""The structure that the README promises, held against the code: who may import whom, and nothing heavy on the way in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down: a module may import what stands on its own line or below.
LAYERS = [
    (
        "cli",
        "cli_checks",
        "cli_making",
        "cli_export",
        "cli_plan",
        "cli_runs",
        "cli_sensitivity",
        "cli_spread",
        "cli_use",
        "output",
        "progress",
        "__main__",
    ),
    ("api",),
    ("runs",),
    ("lessons",),
    ("pipeline", "checks"),
    ("training", "pruning"),
    ("streaming",),
    ("planning", "export", "layers"),
    ("evaluation", "measurement"),
    ("convert",),
    ("sensitivity",),
    ("calibration",),
    ("models", "data", "spec"),
    ("backends", "decoder", "onnx", "select", "inventory"),
    ("kvcache",),
    ("nn",),
    ("methods",),
    ("kernels",),
    ("recipes",),
    ("ledger", "formats"),
    ("spread",),
    ("cpu", "home", "jsonfile", "quiet", "registry"),
    ("errors",),
]
LEVEL = {name: level for level, line in enumerate(reversed(LAYERS)) for name in line}


def imports(path: Path) -> set[str]:
    """Top-level parts of qcore that a file imports when it is itself imported (imports inside functions may point anywhere)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "qcore"
                else [node.module]
            )
        found |= {name.split(".")[1] for name in names if name.startswith("qcore.")}
    return found


def part_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "qcore").parts
    return parts[0].removesuffix(".py")


SOURCES = [path for path in (ROOT / "qcore").rglob("*.py") if path != ROOT / "qcore" / "__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = part_of(path)
    assert own in LEVEL, f"{own} has no place in the layers"
    for other in imports(path) - {own}:
        assert LEVEL[other] <= LEVEL[own], f"{path.name} ({own}) imports {other}, which stands above it"


def test_the_engine_knows_nothing_of_the_dashboard():
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        words = {name.split(".")[0] for name in names}
        assert not words & {"streamlit", "ui", "pages", "plotly"}, path


def test_importing_qcore_loads_nothing_heavy():
    code = "import sys, qcore; print([name for name in ('torch', 'transformers', 'streamlit', 'numpy') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )

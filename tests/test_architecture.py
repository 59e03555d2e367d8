"""Hold the structure that docs/architecture.md draws against the code: rooms, import direction, nothing heavy
on the way in.

A room is a package. All imports count, those inside functions too; only `if TYPE_CHECKING` is left aside.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down: a room may import from the rooms below it, never from those above.
LAYERS = [
    "qcore",
    "cli",
    "jobs",
    "verbs",
    "results",
    "training",
    "pruning",
    "streaming",
    "planning",
    "library",
    "quantization",
    "quantization.sensitivity",
    "quantization.methods",
    "quantization.calibration",
    "engines",
    "engines.onnx",
    "models",
    "interop",
    "evaluation",
    "measurement",
    "runtime",
    "layers",
    "kernels",
    "recipes",
    "formats",
    "base",
]
ROOMS_AT_MOST, LEVELS_AT_MOST = 26, 14
SOURCES = sorted((ROOT / "qcore").rglob("*.py"))


def module_of(path: Path) -> str:
    """ "cli.main" for qcore/cli/main.py, "qcore" for qcore/__init__.py."""
    parts = path.relative_to(ROOT / "qcore").with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").removesuffix(".") or "qcore"


MODULES = {module_of(path) for path in SOURCES}


def room_of(module: str) -> str:
    """The package that holds `module`; "qcore" for the files at the root."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LAYERS:
            return ".".join(parts[:length])
    return "qcore"


def imports(path: Path) -> set[str]:
    """The modules of qcore that a file imports anywhere, without the prefix "qcore."."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "qcore":
                inner = name.removeprefix("qcore").removeprefix(".")
                while inner and inner not in MODULES:
                    inner = inner.rpartition(".")[0]
                found.add(inner or "qcore")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def graph() -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    arrows = {room: set() for room in LAYERS}
    for path in SOURCES:
        own = room_of(module_of(path))
        arrows[own] |= {room_of(other) for other in imports(path)} - {own}
    return arrows


def levels(arrows: dict[str, set[str]]) -> dict[str, int]:
    """The level of each room: 1 if it imports from no other, else one above the highest that it imports from.

    Raises `RecursionError` for a cycle.
    """
    known: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in known:
            known[room] = 1 + max((level(other) for other in arrows[room]), default=0)
        return known[room]

    for room in arrows:
        level(room)
    return known


def cycles(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Pairs of rooms that import from each other, directly or through others."""

    def reach(room: str) -> set[str]:
        seen, waiting = set(), [room]
        while waiting:
            for other in arrows[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    reached = {room: reach(room) for room in arrows}
    return sorted((a, b) for a in arrows for b in arrows if a < b and b in reached[a] and a in reached[b])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = room_of(module_of(path))
    for other in imports(path):
        room = room_of(other)
        if other == "qcore" and own != "qcore":
            continue  # the version, which is a constant of the package itself
        message = f"{module_of(path)} imports {other}, which stands above it"
        assert LAYERS.index(own) <= LAYERS.index(room), message


def test_rooms_levels_and_cycles(capsys):
    arrows = graph()
    for room in LAYERS:
        arrows[room] -= {"qcore"}
    found = cycles(arrows)
    height = max(levels(arrows).values()) if not found else None
    with capsys.disabled():
        print(f"\nrooms {len(arrows)}, levels {height}, cycles {len(found)}")
    assert not found
    assert len(arrows) <= ROOMS_AT_MOST and height <= LEVELS_AT_MOST


def test_every_package_is_a_room():
    packages = {module_of(path) for path in SOURCES if path.name == "__init__.py"}
    assert packages == set(LAYERS)


def test_nothing_loose_at_the_root():
    names = {
        path.name for path in (ROOT / "qcore").iterdir() if path.is_file() and not path.name.startswith(".")
    }
    assert names <= {"__init__.py", "__main__.py", "api.py", "py.typed"}


def test_a_cycle_would_be_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert cycles({"a": {"b"}, "b": set()}) == []


def test_the_engine_knows_nothing_of_the_dashboard():
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        words = {name.split(".")[0] for name in names}
        assert not words & {"streamlit", "ui", "pages", "plotly"}, path


def test_importing_qcore_loads_nothing_heavy():
    heavy = ("torch", "transformers", "streamlit", "numpy")
    code = f"import sys, qcore; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_names_of_test_files_are_unique():
    """pytest imports test files by their names, so it collects only the first of two."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})

"""The package as others install it: its metadata, its wheel, and a comparison by the wheel alone."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
import tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qcore

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OTHERS = {
    "lm-eval",
    "tokenizers",
}  # installed by hand if wanted; needed only by the script that is written beside an ONNX export


def ranges(*groups: list[str]) -> dict[str, Requirement]:
    found = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(each.name): each for each in found}


def pins(*names: str) -> dict[str, str]:
    """The version of each distribution that a requirements file pins."""
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


PINS = pins("requirements-pins.txt", "requirements-ray.txt", "requirements-test.txt")


@pytest.mark.parametrize(
    "name, wanted", ranges(PROJECT["dependencies"], *EXTRAS.values()).items(), ids=lambda value: str(value)
)
def test_each_range_starts_at_the_tested_version(name, wanted):
    (lower,) = [part.version for part in wanted.specifier if part.operator == ">="]
    assert any(part.operator == "<" for part in wanted.specifier), f"{name} has no upper bound"
    assert wanted.specifier.contains(PINS[name])
    assert PINS[name].startswith(lower), f"{name} is tested with {PINS[name]}, but {lower} is admitted"


def test_every_pin_is_declared():
    assert set(pins("requirements-pins.txt")) == set(
        ranges(PROJECT["dependencies"], *(EXTRAS[name] for name in ("app", "engines", "onnx")))
    )
    assert set(pins("requirements-ray.txt")) == set(ranges(EXTRAS["ray"]))
    assert set(pins("requirements-test.txt")) == set(ranges(EXTRAS["dev"]))


def test_everything_that_qcore_imports_is_declared():
    declared = set(ranges(PROJECT["dependencies"], EXTRAS["engines"], EXTRAS["onnx"], EXTRAS["ray"])) | OTHERS
    owners = packages_distributions()
    undeclared = set()
    for path in (ROOT / "qcore").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [
            node.module
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
        ]
        for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"qcore"}:
            found = {canonicalize_name(owner) for owner in owners.get(name, [name])}
            if not found & declared:
                undeclared.add(f"{name} in {path.relative_to(ROOT)}")
    assert not undeclared


def test_hosts_install_the_pins_with_torchs_build_for_cpus():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "--find-links https://download.pytorch.org/whl/cpu/torch/",
        "-r requirements-pins.txt",
    ]
    assert (ROOT / "packages.txt").read_text().split() == ["g++"], "no comments: each word is installed"


def locked() -> dict[str, set[str]]:
    """The versions of each package in the lock file; a package may have several, by marker."""
    found: dict[str, set[str]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())[1:]:
        requirement = Requirement(block.partition("\\")[0])
        assert "--hash=sha256:" in block, f"{requirement} has no hash"
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        found.setdefault(canonicalize_name(requirement.name), set()).add(pin.version)
    return found


def test_the_lock_file_holds_the_pins_without_torch():
    lock, wanted = locked(), pins("requirements-pins.txt")
    wanted.pop("torch")
    assert {name: lock.get(name) for name in wanted} == {name: {version} for name, version in wanted.items()}
    assert not [name for name in lock if fnmatch(name, "*cuda*") or fnmatch(name, "nvidia*")]
    assert not lock.keys() & {"torch", "triton"}


def test_the_lock_file_holds_what_the_pins_require():
    lock, waiting, seen = locked(), list(pins("requirements-pins.txt")), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if name == "torch" and fnmatch(requirement.name, "*cu*") or requirement.name == "triton":
                continue  # of torch's CUDA build
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    assert seen - {"torch"} <= lock.keys(), "run `make lock`"


def test_the_container_copies_what_exists_and_what_is_not_ignored():
    text = (ROOT / "Containerfile").read_text()
    sources = [
        name for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for name in line.split()[:-1]
    ]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == kept
    assert all((ROOT / name).exists() for name in sources)
    assert re.search(r"^USER \d+$", text, re.M) and re.search(r"^HEALTHCHECK ", text, re.M)


def test_pre_commit_uses_the_pinned_versions():
    used = re.findall(
        r"additional_dependencies: \[(\S+)==(\S+)\]", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    assert {"ruff", "clang-format", "codespell"} <= {name for name, _ in used}
    assert all(PINS.get(name, version) == version for name, version in used)


def planned(target: str) -> str:
    """The commands that `make TARGET` would run on a bare clone."""
    command = ["make", "--dry-run", "--always-make", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_run_installs_only_what_it_runs():
    commands = planned("run")
    assert "-r requirements-pins.txt" in commands and "streamlit run app.py" in commands
    assert not re.search("requirements-(test|ray)|chromium|simde|pytest", commands)
    extras = pins("requirements-ray.txt", "requirements-test.txt").keys()
    assert not extras & pins("requirements-pins.txt").keys()


def test_make_test_runs_everything():
    commands = planned("test")
    assert "-r requirements-test.txt" in commands
    for part in (
        "ruff check",
        "ruff format --check",
        "clang-format",
        "codespell",
        "mypy",
        "sanitize.sh",
        "chromium",
    ):
        assert part in commands, part
    chosen = re.findall(r"pytest .*-m \"([^\"]+)\"", commands)
    assert chosen == ["not ray and not alone and not interop", "ray or alone"], (
        "together these are all tests but those of `make test-interop`"
    )
    assert re.search("pytest .*tests/interop", planned("test-interop"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the sources as they stand, built from a copy: a build leaves folders beside them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The `bin` of a fresh environment with the wheel; dependencies are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder),
        "--disable-pip-version-check",
        "install",
        "--quiet",
    ]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # its own .pth files are not read, so no editable qcore
    return folder / "bin"


def run(command: list, folder: Path, **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=inherited | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "qcore"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = set(ZipFile(wheel).namelist())
    assert {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()} == {
        name for name in names if name.startswith("qcore/")
    }
    assert "qcore/py.typed" in names
    assert all(name.startswith(("qcore/", "qcore-")) for name in names)


@pytest.mark.slow
def test_a_comparison_by_the_wheel_alone(environment, tmp_path):
    where = run([environment / "python", "-c", "import qcore; print(qcore.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent)
    assert run([environment / "qcore", "--version"], tmp_path).split() == ["qcore", qcore.__version__]
    model = tiny.checkpoint("llama", tmp_path / "llama")
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 60)
    options = (
        "--recipes fp32,int8,int4-g32 --text text.txt --tokens 1000 --window 64 --prompt-tokens 8 "
        "--new-tokens 3 --repeats 1 --no-generate --threads 1 --json out.json"
    )
    folders = {"QCORE_HOME": str(tmp_path / "home"), "QCORE_KERNELS": str(tmp_path / "kernels")}
    run([environment / "qcore", "compare", model, *shlex.split(options)], tmp_path, **folders)
    rows = {row["recipe"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    assert [(name, row["status"]) for name, row in rows.items()] == [
        ("fp32", "ok"),
        ("int8", "ok"),
        ("int4-g32", "ok"),
    ]
    assert rows["fp32"]["stored_bytes"] > rows["int8"]["stored_bytes"] > rows["int4-g32"]["stored_bytes"]
    assert rows["int4-g32"]["perplexity"] > 1 and rows["int4-g32"]["decode_tok_s"] > 0
    assert list((tmp_path / "kernels").glob("*/qcore_kernels.so")), (
        "the packaged sources of the kernels were not compiled"
    )

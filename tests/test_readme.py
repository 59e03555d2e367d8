"""Hold the documentation against the code: every snippet runs or is parsed, and every name in it exists.

The README's commands run on a tiny model here, and as they stand on the default model in the slow tests.
Commands of other documents are parsed by the command line's own parser; Python is compiled and its calls are
checked.
"""

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from test_architecture import LAYERS
from typer.main import get_command

import qcore
from qcore.cli.main import app, main
from qcore.recipes import parse_row
from qcore.results.rows import ResultRow, RunRecord

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LANGUAGES = ("python", "bash", "text", "mermaid", "toml")
MODEL = "smollm2-135m"
OF_OTHERS = {
    "--no-build-isolation",
    "--address",
    "--head",
    "--pid",
    "--server",
    "--tag",
    "--extra-index-url",
    "--file",
    "--find-links",
}  # pip, ray, py-spy, streamlit, podman, docker


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, and its text."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a bash block, without comments; `&&` separates commands."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
        return [each for each in words if each]


def blocks() -> list[Block]:
    """Return every fenced block of the documentation."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in FENCED.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(document.relative_to(ROOT)), line, match[1], match[2]))
    return found


BLOCKS = blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
BASH = [block for block in BLOCKS if block.language == "bash"]
README = [block for block in BLOCKS if block.document == "README.md"]


def each_document(test):
    return pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))(test)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_language_of_a_block_is_one_that_is_checked(block):
    assert block.language in LANGUAGES


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_calls_what_exists(block):
    tree = ast.parse(block.text)
    compile(tree, str(block), "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qcore":
            assert hasattr(qcore, node.attr), ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("qcore."):
            function = getattr(qcore, ast.unparse(node.func).removeprefix("qcore."))
            inspect.signature(function).bind(*node.args, **{each.arg: each.value for each in node.keywords})


@pytest.mark.parametrize("block", BASH, ids=str)
def test_commands_parse(block):
    for words in block.commands():
        check(words)


def check(words: list[str]) -> None:
    """Fail unless the command `words` names only programs, options, files and variables that exist."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        assert words[0].partition("=")[0] in known_variables() | {"CXX"}, words
        words = words[1:]
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "python" and rest[:2] == ["-m", "qcore"]:
        program, rest = "qcore", rest[2:]
    if program not in CHECKS:
        pytest.fail(f"{program} is a program that this test does not know")
    CHECKS[program](rest)


def check_qcore(words: list[str]) -> None:
    """Parse `words` as the command line would, without running the command; parse the recipes, too."""
    command, path = get_command(app), "qcore"
    while hasattr(command, "commands"):
        if words in ([], ["--help"], ["--version"]):
            return
        context = command.make_context(path, list(words))
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        path = f"{path} {name}"
    if words == ["--help"]:
        return
    values = command.make_context(path, list(words)).params
    for name in (values.get("recipes") or values.get("recipe") or "").split(","):
        if name:
            parse_row(name)


def check_python(words: list[str]) -> None:
    """A script of the repository with options that its source knows, or a module that can be found."""
    if words[0] == "-m":
        assert words[1] in ("build", "pip", "venv") or importlib.util.find_spec(words[1]), words
    elif words[0] != "-c" and not words[0].startswith("model-onnx/"):  # a program that `export` writes
        source = (ROOT / words[0]).read_text()
        for option in [word for word in words[1:] if word.startswith("--")]:
            assert f'"{option}"' in source, f"{words[0]} has no option {option}"


def check_pip(words: list[str]) -> None:
    """Requirement files and extras that exist."""
    assert words[0] == "install", words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("optional-dependencies", {})
    for before, word in zip(words, words[1:], strict=False):
        if before == "-r":
            assert (ROOT / word).is_file(), word
        if found := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(found[1].split(",")) <= set(extras), word


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets), words


def check_files(words: list[str]) -> None:
    """Arguments that look like paths of the repository exist."""
    for word in words:
        if "/" in word or word.endswith(".py"):
            assert (ROOT / word.partition("::")[0]).exists(), word


CHECKS = {
    "qcore": check_qcore,
    "python": check_python,
    "pip": check_pip,
    "make": check_make,
    "pytest": check_files,
    "streamlit": check_files,
    "ruff": lambda words: None,
    "bash": check_files,
    "tail": lambda words: None,
    "ray": lambda words: None,
    "git": lambda words: None,
    "podman": lambda words: None,
}


@each_document
def test_options_in_the_text_exist(document):
    prose = FENCED.sub("", document.read_text())
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) - OF_OTHERS
    assert named <= known_options(), sorted(named - known_options())


@each_document
def test_paths_and_links_lead_somewhere(document):
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCED.sub("", text)):
        assert target.startswith("https://") or (document.parent / target).exists(), target
    for path in re.findall(r"`((?:qcore|tests|benchmarks|docs|ui|pages)/[\w./-]*\w/?)`", text):
        assert (ROOT / path).exists() or "NAME" in path or "foo" in path, path


@each_document
def test_names_of_the_engine_exist(document):
    for name in re.findall(r"`(qcore(?:\.\w+)+)\b", document.read_text()):
        if name in ("qcore.json", "qcore.db", "qcore.db.behind", "qcore.extensions"):  # files; entry points
            continue
        found = qcore
        for part in name.split(".")[1:]:
            if inspect.ismodule(found) and found is not qcore or not hasattr(found, part):
                try:
                    found = importlib.import_module(f"{found.__name__}.{part}")
                    continue
                except ModuleNotFoundError:
                    pass
            assert hasattr(found, part), name
            found = getattr(found, part)


@each_document
def test_variables_in_the_text_are_read_somewhere(document):
    assert set(re.findall(r"\bQCORE_[A-Z_]+\b", document.read_text())) <= known_variables("tests/interop")


def test_every_variable_is_documented():
    documented = set(re.findall(r"`(QCORE_[A-Z_]+)`", (ROOT / "docs" / "debugging.md").read_text()))
    assert known_variables() - {"QCORE_EMULATE"} <= documented


def test_every_room_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [room.replace(".", "/") + "/" for room in LAYERS if room != "qcore"]
    assert [room for room in rooms if f"`{room}`" not in text] == []


def test_files_in_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in re.findall(r"\b((?:[a-z]+/)+[a-z_*]+\.py)", text):
        assert list(ROOT.glob(path)) or list((ROOT / "qcore").glob(path)), path


def test_every_document_is_linked():
    linked = "".join(document.read_text() for document in DOCUMENTS)
    for document in DOCUMENTS[1:]:
        assert f"{document.name})" in linked, document


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readmes_commands_run_on_a_tiny_model(tmp_path, monkeypatch, own_home):
    folder = small_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert [words[0] for words in commands] == ["plan", "compare", "quantize", "eval", "bench", "generate"]
    for words in commands:
        if words[0] != "compare":  # two minutes of processes; the slow test below runs it
            assert main([str(folder) if word == MODEL else word for word in words]) == 0, words


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in PYTHON if block.document != "README.md"], ids=str)
def test_scripts_run_on_a_tiny_model(block, tmp_path, monkeypatch, own_home):
    folder = small_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(compile(block.text.replace(MODEL, str(folder)), str(block), "exec"), values)  # noqa: S102
    assert "row" not in values or values["row"]["status"] == "ok"


def test_every_command_is_documented():
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "command-line.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(get_command(app).commands)


def test_every_key_of_a_row_and_of_its_record_is_documented():
    rows, _, record = (ROOT / "docs" / "results.md").read_text().partition("## The record")
    first = re.compile(r"^\| (`.*?`) \|", re.MULTILINE)
    for text, keys in ((rows, ResultRow.__annotations__), (record, RunRecord.__annotations__)):
        assert sorted(re.findall(r"`(\w+)`", "".join(first.findall(text)))) == sorted(keys)


@pytest.mark.slow
def test_the_readmes_script(tmp_path):
    (block,) = [block for block in README if block.language == "python"]
    *_, first, second = run(["-c", block.text], tmp_path).splitlines()
    assert first.startswith("fp32 ") and second.startswith("int8 ")
    assert (tmp_path / "smollm2-int4" / "qcore.json").exists()


@pytest.mark.slow
def test_the_readmes_commands(tmp_path):
    for words in readme_commands():
        run(["-m", "qcore", *words], tmp_path)
    assert (tmp_path / "out.json").stat().st_size > 10_000


def readme_commands() -> list[list[str]]:
    """Return the arguments of every `qcore` command in the README."""
    return [
        words[1:]
        for block in README
        if block.language == "bash"
        for words in block.commands()
        if words[0] == "qcore"
    ]


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_model(folder: Path) -> Path:
    """Save a tiny Llama with as many positions as the README's commands use."""
    from transformers import AutoModelForCausalLM

    config = type(tiny.CONFIGS["llama"])(
        **tiny.CONFIGS["llama"].to_dict() | {"max_position_embeddings": 4096}
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def known_options() -> set[str]:
    """Return the options of every command and of the benchmarks' scripts."""
    found, waiting = set(), [get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        found |= {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
    for script in (ROOT / "benchmarks").glob("*.py"):
        found |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', script.read_text()))
    return found | {"--help"}


def known_variables(*more: str) -> set[str]:
    """Return the QCORE_ variables that Python sources read, or that compiled sources are built with, in the
    product and in the folders `more`."""
    found = set()
    for folder in ("qcore", "ui", "pages", *more):
        for source in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r"[\"'](?:-D)?(QCORE_[A-Z_]*[A-Z])[\"']", source.read_text()))
    return found

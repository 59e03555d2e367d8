"""What the README tells people to type is run as it stands, in an empty folder, on the default model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_script(tmp_path):
    (script,) = [text for language, text in BLOCKS if language == "python"]
    *_, first, second = run(["-c", script], tmp_path).splitlines()
    assert first.startswith("fp32 ") and second.startswith("int8 ")
    assert (tmp_path / "smollm2-int4" / "qcore.json").exists()


@pytest.mark.slow
def test_the_commands(tmp_path):
    lines = [
        line
        for language, text in BLOCKS
        if language == "bash"
        for line in text.splitlines()
        if line.startswith("python -m qcore")
    ]
    assert len(lines) == 7
    for line in lines:
        run(line.split()[1:], tmp_path)
    assert (tmp_path / "out.json").stat().st_size > 10_000


def test_the_set_up_commands_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test", "setup", "quick"} <= set(targets)
    assert all(target in targets for target in re.findall(r"make (\w+)", README))

"""Other projects' runtimes, each in a fresh process: the scripts of peers/ load models with that project's
own code and write their logits.

Interpreters are searched in the order of QCORE_INTEROP (paths separated by colons; by default that of
`.venv-interop`), then the interpreter of the tests. The first that has the runtime's package runs it. Without
one, a test is skipped; under `make test-interop`, which installs them, it fails.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
PEERS = Path(__file__).parent / "peers"
PACKAGES = {
    "transformers": ("transformers",),
    "llama.cpp": ("llama_cpp",),
    "ik_llama.cpp": ("ik_llama_cpp",),
    "gptqmodel": ("gptqmodel",),
    "mlx-lm": ("mlx_lm",),
    "vllm": ("vllm",),
}
OPTIONAL = ("llama.cpp",)  # its package compiles for minutes, so `make test-interop` does not install it
PATIENCE = 300  # seconds; shared machines are slow


def logits(
    runtime: str, models: Mapping[str, Path], ids: list[int], *, needed: tuple[str, ...] = (), setup: str = ""
) -> dict[str, np.ndarray | str]:
    """Return, for each of `models` (name -> folder or file), the logits (T, V), float32, that `runtime`
    computes for the tokens `ids` (T,), or the traceback if it fails. All models run in one fresh process,
    because importing a runtime takes seconds.

    `needed` are packages that the runtime must have beside it, such as "compressed_tensors"; `setup` is a
    Python statement to run first, such as "import qcore". Skip the test if the runtime is not installed.
    Raise `RuntimeError` if the process dies.
    """
    script = PEERS / f"run_{runtime.replace('.', '_').replace('-', '_')}.py"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.npz"
        job = {"models": {name: str(path) for name, path in models.items()}, "ids": ids, "setup": setup}
        ran = subprocess.run(
            [interpreter(runtime, *needed), str(script)],
            input=json.dumps(job | {"out": str(out)}),
            cwd=scratch,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if ran.returncode or not out.exists():
            raise RuntimeError(f"{runtime} failed:\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}")
        with np.load(out) as arrays:
            return {**dict(arrays), **json.loads(Path(f"{out}.json").read_text())}


def interpreter(runtime: str, *needed: str) -> str:
    """Return the interpreter that has one of the packages of `runtime`, and all that are `needed` with it.
    Skip the test if there is none."""
    for path in interpreters():
        if any(_has(path, name) for name in PACKAGES[runtime]) and all(_has(path, name) for name in needed):
            return path
    missing = " with ".join((runtime, *needed))
    if os.environ.get("QCORE_CELLS") and runtime not in OPTIONAL:
        pytest.fail(f"{missing} is not installed, but `make test-interop` needs it: requirements-interop.txt")
    pytest.skip(f"{missing} is not installed here; `make test-interop` installs it.")


def interpreters() -> list[str]:
    """Return the interpreters in which runtimes are searched."""
    given = os.environ.get("QCORE_INTEROP", str(ROOT / ".venv-interop/bin/python"))
    return [path for path in [*given.split(":"), sys.executable] if Path(path).exists()]


@functools.cache
def _has(interpreter: str, package: str) -> bool:
    """Return whether `interpreter` finds `package`. Nothing is imported."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    return subprocess.run([interpreter, "-c", code], env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    """Return the environment without the tests' import path: peers must not find qcore by accident."""
    unset = ("PYTHONPATH", "PYTEST_CURRENT_TEST")
    return {name: value for name, value in os.environ.items() if name not in unset} | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

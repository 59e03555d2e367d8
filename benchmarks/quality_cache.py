"""Cache of measured rows of `quality.py`, so that an interrupted run resumes where it stopped.

A row is stored under a hash of all its inputs: the model, both texts, all settings, the versions of the
packages, and the code that quantizes and scores. After any change the row is measured again; a table never
mixes rows of different inputs.
"""

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path

from benchmarks.quality_plan import BASELINE, Method

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = tuple(
    f"qcore/evaluation/{name}.py" for name in ("perplexity", "divergence", "logits", "reference", "windows")
)
SCORING = (
    *REFERENCE,
    "qcore/base/texts.py",
    "benchmarks/quality_row.py",
    "benchmarks/quantizers/__init__.py",
)
OWN = (
    "qcore/quantization/methods",
    "qcore/quantization/calibration",
    "qcore/formats",
    "qcore/kernels",
    "qcore/runtime",
    "qcore/quantization/convert.py",
    "qcore/layers/modules.py",
    "qcore/recipes/recipe.py",
    "qcore/layers/select.py",
    "benchmarks/quantizers/own.py",
)
LIBRARY = ("qcore/engines", "benchmarks/quantizers/own.py")
PEER = ("qcore/quantization/calibration/text.py",)
LLAMA = (
    "benchmarks/gguf_writer.py",
    "qcore/interop/gguf_metadata.py",
    "qcore/interop/gguf_names.py",
    "benchmarks/imatrix.py",
    "qcore/quantization/calibration/importance.py",
    "qcore/quantization/calibration/blocks.py",
    "qcore/quantization/calibration/inputs.py",
)
MIXED = ("qcore/quantization/sensitivity",)
COMMON = ("torch", "transformers")


def key(method: Method, conditions: dict) -> str:
    """Return a hash of all inputs of the row of `method` under `conditions` (JSON-ready)."""
    versions = [f"{package} {_version(package)}" for package in (*COMMON, *method.needs)]
    parts = [
        json.dumps([method.module, method.item, conditions], sort_keys=True),
        *versions,
        *(code(part) for part in sources(method)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def reference_key(conditions: dict) -> str:
    """Return the same for the baseline's predictions, which do not depend on any quantizer."""
    parts = [
        json.dumps(conditions, sort_keys=True),
        *(f"{package} {_version(package)}" for package in COMMON),
    ]
    return hashlib.sha256("\n".join([*parts, *map(code, REFERENCE)]).encode()).hexdigest()[:16]


def sources(method: Method) -> tuple[str, ...]:
    """Return the files and folders whose source text the row depends on."""
    if method.name == BASELINE:
        return SCORING
    if method.own:
        return SCORING + OWN + (MIXED if "auto-" in method.name else ())
    if method.module == "own":
        return SCORING + LIBRARY
    return (
        SCORING
        + PEER
        + (f"benchmarks/quantizers/{method.module}.py",)
        + (LLAMA if method.module == "llamacpp" else ())
    )


def code(part: str) -> str:
    """Return the source text of a file, or of all files below a folder.

    Raise `FileNotFoundError` if there is none: a row whose code moved away would never be measured again.
    """
    path = ROOT / part
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*") if file.suffix in (".py", ".cpp", ".h"))
    )
    if not files:
        raise FileNotFoundError(f"{part} holds no source file")
    return "".join(f"{file.relative_to(ROOT)}\n{file.read_text()}" for file in files)


def read(folder: Path, method: Method, name: str) -> dict | None:
    """Return the row stored under the hash `name`, or None. An unreadable file counts as missing."""
    try:
        return json.loads(_path(folder, method, name).read_text())
    except (FileNotFoundError, ValueError):
        return None


def write(folder: Path, method: Method, name: str, row: dict) -> None:
    """Store a row; rows of the same method under other hashes stay."""
    folder.mkdir(parents=True, exist_ok=True)
    final = _path(folder, method, name)
    temporary = final.with_suffix(".part")
    temporary.write_text(json.dumps(row))
    temporary.replace(final)


def _path(folder: Path, method: Method, name: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', method.name)}-{name}.json"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"

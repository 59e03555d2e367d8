"""JSON on disk that is never half written and never says NaN, and the data files that come with the
package."""

import json
import math
import os
import tempfile
from pathlib import Path


def write_json(path: Path, value) -> None:
    """Write to a temporary file beside `path`, flush, rename: readers see the old text or the new one, never
    half of it.

    Numbers that JSON has no word for (NaN, infinity) become null.
    """
    text = json.dumps(finite(value), ensure_ascii=False, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path):
    """The value in the file, or None if it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def asset(name: str) -> Path:
    """The data file called `name` that comes with the package."""
    return Path(__file__).resolve().parents[1] / "assets" / name


def finite(value):
    """`value` with tuples as lists and non-finite floats as None, so that it is JSON everywhere."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

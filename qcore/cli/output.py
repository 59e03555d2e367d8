"""Output of a command: messages to standard error, results to standard output, JSON to a file or to standard
output."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import write_text
from qcore.results.report import to_json, visible, visible_text

STDOUT = "-"


def degrade() -> None:
    """Print a question mark for each character that the terminal or file cannot hold."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """Print a message on standard error with control characters escaped. A full device receives nothing."""
    with contextlib.suppress(OSError):
        print("\n".join(visible(line) for line in text.splitlines()), file=sys.stderr, flush=True)


def check_output(path: str | None, option: str = "--json") -> None:
    """Raise `InputError`, naming the `option`, now if a result cannot be written to `path` later."""
    if path is None or path == STDOUT:
        return
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{option} {path} is a folder; give the name of a file.")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{option} {path} cannot be written: there is no folder {target.absolute().parent}.")
    if not os.access(target if target.exists() else target.absolute().parent, os.W_OK):
        raise InputError(f"{option} {path} cannot be written: permission denied.")


def write_output(result, path: str | None, text: str) -> int:
    """Print `text` and write `result` as JSON to `path`; on standard output the JSON stands alone. Returns
    0."""
    print(visible_text(text), file=sys.stderr if path == STDOUT else sys.stdout, flush=True)
    if path is not None:
        write_file(path, to_json(result))
    return 0


def write_file(path: str | Path, text: str) -> None:
    """Write `text` to the file `path`, or to standard output for "-". Raise `InputError` if it cannot be
    written."""
    if path == STDOUT:
        try:
            text.encode(sys.stdout.encoding or "ascii")
        except UnicodeError:  # JSON has escapes of its own, other text is degraded
            with contextlib.suppress(ValueError):
                text = json.dumps(json.loads(text), indent=2) + "\n"
        sys.stdout.write(text)
        return
    path = Path(path)
    if path.exists() and not path.is_file():  # /dev/stdout, a named pipe
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error

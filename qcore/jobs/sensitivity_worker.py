"""`python -m qcore.jobs.sensitivity_worker`: carries out the request that lies in the cache folder and says
how far it is."""

import logging
import sys
import time

from qcore.base.errors import QcoreError
from qcore.base.files import read_json, write_json
from qcore.base.quiet import hush
from qcore.jobs.sensitivity import job_folder
from qcore.verbs.sensitivity import Request, run

STATUS_SECONDS = 0.3


def main() -> int:
    """Compute; 0 if it succeeded, 1 if it failed and said so."""
    hush()
    logging.basicConfig(level=logging.WARNING)
    folder = job_folder()
    about = read_json(folder / "status.json")
    written = 0.0

    def say(force: bool = False, **changes) -> None:
        nonlocal written
        about.update(changes)
        if force or time.monotonic() - written > STATUS_SECONDS:
            written = time.monotonic()
            write_json(folder / "status.json", about)

    try:
        key, _ = run(
            Request(**read_json(folder / "request.json")),
            lambda done, total, words: say(done=done, total=total, words=words),
        )
    except QcoreError as error:
        say(True, state="failed", error=str(error))
        return 1
    except MemoryError:
        say(
            True,
            state="failed",
            error="There was not enough memory. Read fewer tokens, or close other programs.",
        )
        return 1
    except Exception as error:
        logging.exception("Computing the sensitivities failed")
        first = str(error).strip().partition("\n")[0][:300]
        say(
            True,
            state="failed",
            error=f"It failed while it was at: {about['words']} ({type(error).__name__}: {first}).",
        )
        return 1
    say(True, state="done", key=key, words="done", done=0, total=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())

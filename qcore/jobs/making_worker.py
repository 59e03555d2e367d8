"""`python -m qcore.jobs.making_worker JOB`: makes the model that the request in the job's folder asks for,
and says how far it is."""

import logging
import signal
import sys
import time

from qcore.base.errors import QcoreError
from qcore.base.files import read_json, write_json
from qcore.base.home import home
from qcore.base.quiet import hush
from qcore.jobs.making_jobs import Request, call, folder

STATUS_SECONDS = 0.3


def main(job: str) -> int:
    """Make it; 0 if it succeeded, 1 if it failed and said so."""
    hush()
    signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(level=logging.WARNING)
    place = folder(job)
    about = read_json(place / "status.json")
    written = {"status": 0.0, "history": 0.0}

    def due(what: str) -> bool:
        if time.monotonic() - written[what] <= STATUS_SECONDS:
            return False
        written[what] = time.monotonic()
        return True

    def say(force: bool = False, **changes) -> None:
        about.update(changes)
        if due("status") or force:
            write_json(place / "status.json", about)

    def watch(history) -> None:
        if due("history"):
            write_json(place / "history.json", history.record())

    try:
        request = Request(**read_json(place / "request.json"))
        out = home() / "made" / request.name
        result = call(
            request, out, lambda done, total, words="": say(done=done, total=total, words=words), watch
        )
    except QcoreError as error:
        say(True, state="failed", error=str(error), finished_at=time.time())
        return 1
    except MemoryError:
        words = (
            "There was not enough memory. Take a smaller window or a smaller model, or close other programs."
        )
        say(True, state="failed", error=words, finished_at=time.time())
        return 1
    except Exception as error:
        logging.exception("Making the model failed")
        first = str(error).strip().partition("\n")[0][:300]
        words = f"It failed while it was at: {about['words']} ({type(error).__name__}: {first})."
        say(True, state="failed", error=words, finished_at=time.time())
        return 1
    if result.get("history"):
        write_json(place / "history.json", result["history"])
    write_json(place / "result.json", result)
    say(True, state="done", words="done", done=0, total=0, finished_at=time.time())
    return 0


def _interrupt(number: int, frame) -> None:
    """A page's Cancel: training keeps its state on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Logging of the command line, the workers and their children, set up in one place.

Every module logs to `logging.getLogger("qcore.…")`: phases and events at INFO, choices (kernels, fallbacks)
at DEBUG, problems that the user should see at WARNING. QCORE_LOG=debug (or info, warning, error) sets the
level, and the option --verbose sets QCORE_LOG=debug; child processes inherit it.
"""

import logging
import os

VARIABLE = "QCORE_LOG"
LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(usual: str = "warning") -> None:
    """Send log records to standard error: those of qcore from the level in QCORE_LOG (default: `usual`),
    those of other libraries from WARNING. A second call only changes the level."""
    asked = os.environ.get(VARIABLE, "").strip().lower() or usual
    logging.basicConfig(level=logging.WARNING, format=FORMAT)
    log = logging.getLogger("qcore")
    if asked not in LEVELS:
        log.warning(
            "%s is %r, but it must be one of %s; %s is used.", VARIABLE, asked, ", ".join(LEVELS), usual
        )
        asked = usual
    log.setLevel(asked.upper())

"""Every failure that a person can cause or mend, as one plain sentence.

The message of a `QcoreError` is shown as it stands: the command line prints it and exits with 2, a page puts
it into an error box, a run stores it in its row. It says what was wrong and what to do, and never shows a
token or a stack trace.
"""


class QcoreError(Exception):
    """Base of all errors whose message is meant for the user."""


class InputError(QcoreError, ValueError):
    """Something the user gave (a name, a file, a number) cannot be used; the message says why and what would
    do."""


class TooLargeError(InputError):
    """A model does not fit into the memory at hand; the message holds the arithmetic and what would fit."""


class UnavailableError(QcoreError):
    """A library, a compiler, a device or the hub is missing or unreachable; the message holds the reason."""


class NotAppliedError(QcoreError):
    """A recipe left the model (or more of it than it should) as it was. The run is red."""


class RunError(QcoreError):
    """A run's process failed or was killed; the message says which and how far it came."""

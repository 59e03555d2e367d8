"""Errors that a user can cause or fix, each one plain sentence.

The message of a `QcoreError` is shown as it stands: the command line prints it and exits with 2, a page puts
it into an error box, a run stores it in its row. It says what is wrong and what to do, and never contains a
token or a stack trace.
"""


class QcoreError(Exception):
    """Base of all errors whose message is meant for the user."""


class InputError(QcoreError, ValueError):
    """Invalid input (a name, a file, a number); the message says why and what is allowed."""


class TooLargeError(InputError):
    """A model does not fit into the available memory; the message holds the arithmetic and names an
    alternative that fits."""


class UnavailableError(QcoreError):
    """A library, a compiler, a device or the hub is missing or unreachable; the message holds the reason."""


class NotAppliedError(QcoreError):
    """A recipe left tensors unquantized that it should have quantized. The run is marked as failed."""


class RunError(QcoreError):
    """A run's process failed or was killed; the message names the process and its last step."""

"""Errors that a user can cause or fix, each one plain sentence.

The message of a `QcoreError` is shown as it stands: the command line prints it and exits with 2, a page puts
it into an error box, a run stores it in its row. It says what is wrong and what to do, and never contains a
token or a stack trace. Messages quote what files and people say, so they are kept to one printable line of
at most `LONGEST` characters.
"""

LONGEST = 1600  # characters of a message
_END = 400  # of them at the end, where a message says what to do


class QcoreError(Exception):
    """Base of all errors whose message is meant for the user."""

    def __str__(self) -> str:
        return one_line(super().__str__())


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


def one_line(text: str) -> str:
    """Return `text` as one printable line of at most `LONGEST` characters: control characters, line breaks,
    overrides of the writing direction and lone surrogates are escaped, and a long text loses its middle."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - _END]} … {text[-_END:]}"
    if text.isprintable():
        return text
    shown = "".join(c if c.isprintable() or c == "\xa0" else ascii(c)[1:-1] for c in text)
    return one_line(shown) if len(shown) > LONGEST + 3 else shown

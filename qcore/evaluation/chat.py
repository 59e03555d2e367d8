"""Messages as the text of a prompt, by the chat template that comes with a tokenizer.

A template is a small program (Jinja) of the model's author. It runs in transformers' sandbox, for at most
`PATIENCE` seconds, and every way in which it can fail becomes one sentence with the template's name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError
from qcore.base.transformers_internals import compile_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qcore.base.prompts import Message

PATIENCE = 5.0  # seconds; real templates take milliseconds
DEFAULT = "default"  # the name of the usual template


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer has a chat template, usable or not."""
    return bool(getattr(tokenizer, "chat_template", None))


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return the text that asks for an answer to `messages`. Raise `InputError` if there is no chat template,
    or if it cannot be used."""
    check_template(getattr(tokenizer, "chat_template", None))
    plain = [{"role": message.role, "content": message.content} for message in messages]
    try:
        with _deadline():
            return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template runs code of its author, which may raise anything
        raise _unusable(error) from error


def check_template(template: str | Mapping[str, str] | None) -> None:
    """Raise `InputError` if there is no chat `template`, several of them and none for plain messages, or one
    with an error of syntax."""
    if not template:
        raise InputError(
            "This model has no chat template, so it cannot answer chat messages; send the prompt as plain "
            "text."
        )
    if not isinstance(template, str | Mapping):
        raise InputError(
            f"The chat template of this model is {template!r}, not a text. Send the prompt as plain text."
        )
    if not isinstance(template, str):
        if DEFAULT not in template:
            raise InputError(
                f"This model has chat templates only under names ({', '.join(sorted(template))}), and none "
                f"called {DEFAULT!r} for plain messages. Send the prompt as plain text."
            )
        template = template[DEFAULT]
    try:
        compile_chat_template(template)
    except Exception as error:  # as above
        raise _unusable(error) from error


def _unusable(error: Exception) -> InputError:
    return InputError(
        f"The chat template of this model ({DEFAULT!r}) cannot be used: {_reason(error)}. Send the prompt as "
        "plain text, or repair the template."
    )


def _reason(error: Exception) -> str:
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    words = first.rstrip(".")
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno} has an error of syntax ({words})"
    if isinstance(error, SecurityError):
        return f"it reaches for something forbidden ({words})"
    if isinstance(error, UndefinedError):
        return f"it needs something that a plain message does not have ({words})"
    if isinstance(error, TimeoutError):
        return f"it did not end within {PATIENCE:g} seconds"
    return f"it refuses the messages ({words})" if type(error) is TemplateError else f"it fails ({words})"


@contextmanager
def _deadline() -> Iterator[None]:
    """Raise `TimeoutError` in this thread after `PATIENCE` seconds of Python code: a sandbox limits each
    range of a template, not the loops within loops."""
    end, before = time.monotonic() + PATIENCE, sys.gettrace()

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)

"""Messages as the text of a prompt, by the chat template that comes with a tokenizer.

A template is a small program (Jinja) of the model's author. It is compiled and run in transformers' sandbox,
in a process of its own that may take `PATIENCE` seconds and `MEMORY` bytes: `{{ 10 ** (10 ** 9) }}` is one
operation of native code that no sandbox ends. Every way in which it can fail becomes one sentence with the
template's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from qcore.base.apart import apart
from qcore.base.errors import InputError
from qcore.base.transformers_internals import compile_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qcore.base.prompts import Message

PATIENCE = 5.0  # seconds; real templates take milliseconds
MEMORY = 512 << 20  # bytes
DEFAULT = "default"  # the name of the usual template


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer has a chat template, usable or not."""
    return bool(getattr(tokenizer, "chat_template", None))


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return the text that asks for an answer to `messages`. Raise `InputError` if there is no chat template,
    or if it cannot be used."""
    _chosen(getattr(tokenizer, "chat_template", None))
    plain = [{"role": message.role, "content": message.content} for message in messages]
    return _apart(
        lambda: str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
    )


def check_template(template: str | Mapping[str, str] | None) -> None:
    """Raise `InputError` if there is no chat `template`, several of them and none for plain messages, or one
    with an error of syntax."""
    chosen = _chosen(template)

    def compiled() -> str:
        compile_chat_template(chosen)
        return ""

    _apart(compiled)


def _chosen(template: str | Mapping[str, str] | None) -> str:
    """Return the template for plain messages. Raise `InputError` if there is none."""
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
    return template


def _apart(work: Callable[[], str]) -> str:
    """Return the text of `work()`, which compiles or runs a template. Raise `InputError` if that fails."""
    compile_chat_template("")  # loads Jinja here, once

    def answer() -> str:
        try:
            return json.dumps([work(), None])
        except MemoryError:
            raise
        except Exception as error:  # a template runs code of its author, which may raise anything
            return json.dumps([None, _reason(error)])

    try:
        text, why = json.loads(apart(answer, PATIENCE, MEMORY))
    except TimeoutError:
        text, why = None, f"it did not end within {PATIENCE:g} seconds"
    except (MemoryError, RuntimeError):
        text, why = None, f"it takes more than {MEMORY >> 20} MB of memory"
    if why is None:
        return str(text)
    raise InputError(
        f"The chat template of this model ({DEFAULT!r}) cannot be used: {why}. Send the prompt as plain "
        "text, or repair the template."
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
    return f"it refuses the messages ({words})" if type(error) is TemplateError else f"it fails ({words})"

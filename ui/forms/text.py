"""Choose the text to score and the measurement conditions."""

import hashlib
import os
from pathlib import Path

import streamlit as st

from qcore.base import quota, texts
from qcore.base.errors import InputError
from qcore.base.files import replaced_file
from qcore.base.home import home, is_public
from qcore.base.limits import limits
from qcore.measurement.environment import gpu_name
from qcore.recipes.spec import LIMITS
from ui import state
from ui.forms import KEEP
from ui.glossary import explain

DEFAULT, WIKITEXT, UPLOAD, FILE = "Built-in prose", "WikiText-2", "Upload", "File"
NOTES = {
    DEFAULT: "Prose of the Python language reference, from the standard library. Works offline.",
    WIKITEXT: "WikiText-2 raw, test split, as reported in papers. Fetched from the hub.",
}
QUESTIONS = "Ask 64 multiple-choice questions"
QUESTIONS_HELP = (
    "Easy general knowledge. Too few questions for small losses, but enough to expose a broken model."
)
PROMPTS = "Compare answers to 20 prompts"
PROMPTS_HELP = (
    "Facts, arithmetic, code, summaries, other languages. Each prompt is continued greedily, and the answer "
    "is compared with the baseline's."
)
CHAT = "Send prompts in the chat template"
CHAT_HELP = (
    "As messages, if the model has a chat template. Switched off, the prompt is continued as plain text."
)


def choose(prefix: str) -> str | None:
    """Return the text to score, as `qcore.base.texts.load_text` takes it: None for the default, "wikitext-2",
    or a path. Raise `InputError` if no text is chosen yet or an upload is not text."""
    sources = [DEFAULT, WIKITEXT, UPLOAD, *([] if is_public() else [FILE])]
    label, key = "Text to score", f"{prefix}.text"
    source = st.segmented_control(
        label, sources, default=DEFAULT, required=True, key=key, help=explain("perplexity"), **KEEP
    )
    if source in NOTES:
        st.caption(NOTES[source])
        return texts.WIKITEXT if source == WIKITEXT else None
    if source == FILE:
        path = st.text_input(
            "UTF-8 text file", placeholder="/path/to/text.txt", key=f"{prefix}.file", **KEEP
        ).strip()
        if not path:
            raise InputError("Enter the path of a text file, or choose the built-in prose.")
        return path
    upload = st.file_uploader(
        "UTF-8 text file", type=["txt", "md", "rst", "raw", "text"], key=f"{prefix}.upload"
    )
    if upload is None:
        raise InputError("Upload a text file, or choose the built-in prose.")
    return str(keep_upload(upload.name, upload.getvalue()))


def keep_upload(name: str, content: bytes) -> Path:
    """Write an uploaded text into the cache folder, named after its SHA-256, and return its path. Raise
    `InputError` if the content is too large or not text."""
    if is_public() and len(content) > state.PUBLIC_UPLOAD:
        raise InputError(
            f"Texts are limited to {state.PUBLIC_UPLOAD / 1e6:.0f} MB on this server; this one has "
            f"{len(content) / 1e6:.1f} MB."
        )
    texts.text_from_bytes(name, content)
    folder = home() / "texts"
    if is_public() and quota.size_of(folder) > 2 * limits().uploads:
        raise InputError("This server has no space for another upload now. Try again later.")
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.txt"
    if final.exists():
        os.utime(final)
    else:
        with replaced_file(final) as file:
            file.write(content)
    return final


def conditions(prefix: str) -> dict:
    """Return the fields of `RunSpec` that set the measurement conditions."""
    left, right = st.columns(2)
    with left:
        tokens = _number(
            prefix,
            "Tokens scored",
            "tokens",
            4096,
            512,
            explain("tokens") + " More tokens give a more precise perplexity and take longer.",
        )
        prompt = _number(
            prefix,
            "Prompt, tokens",
            "prompt_tokens",
            128,
            64,
            "Length of the prompt whose prefill is timed. " + explain("prefill"),
        )
    with right:
        window = _number(prefix, "Window, tokens", "window", 512, 128, explain("window"))
        new = _number(
            prefix,
            "New tokens",
            "new_tokens",
            32,
            16,
            "Tokens generated while decode speed is measured. " + explain("decode"),
        )
    generate = st.toggle(PROMPTS, value=True, key=f"{prefix}.generate", help=PROMPTS_HELP, **KEEP)
    chat = st.toggle(CHAT, value=True, key=f"{prefix}.chat", help=CHAT_HELP, disabled=not generate, **KEEP)
    ask = st.toggle(
        QUESTIONS,
        value=False,
        key=f"{prefix}.ask",
        help=QUESTIONS_HELP + " " + explain("multiple choice"),
        **KEEP,
    )
    conditions = {
        "tokens": tokens,
        "window": window,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "generate": generate,
        "chat": chat,
    }
    return conditions | {"choices": "default" if ask else None, "device": _device(prefix)}


def _device(prefix: str) -> str:
    """Return the device to run on, which is only a question on a machine with a GPU."""
    gpu = gpu_name()
    if gpu is None:
        return "cpu"
    return st.radio(
        "Device", ["cpu", "cuda"], horizontal=True, key=f"{prefix}.device", help=f"cuda: {gpu}", **KEEP
    )


def _number(prefix: str, label: str, name: str, value: int, step: int, help_text: str) -> int:
    low, high = LIMITS[name]
    high = min(high, state.PUBLIC_LIMITS[name]) if is_public() else high
    return st.number_input(
        label, low, high, min(value, high), step, key=f"{prefix}.{name}", help=help_text, **KEEP
    )

"""What a person chooses before a run: a model, recipes, a text, and the conditions of the measurements."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from qcore import recipes
from qcore.errors import InputError
from qcore.home import home
from qcore.recipes import ENGINES, Recipe
from ui import families, state
from ui.glossary import explain
from ui.text import shielded

BUILT_IN, HUB, LOCAL, BEFORE = "Built in", "Hugging Face hub", "Folder or file", "Used before"
DEFAULT_TEXT, WIKITEXT, UPLOAD, FILE = "Built-in prose", "WikiText-2", "Upload", "File"
START = ("fp32", "int8", "int4-g64")
PRESETS = {
    "First look": START,
    "Around 8 bits": ("fp32", "int8", "int8-g64", "int8-dynamic", "bnb-int8", "torchao-int8", "torch-dynamic-int8", "quanto-int8"),
    "Around 4 bits": ("fp32", "int4-g32", "int4-g64", "nf4-g64", "nf4-g64-dq", "fp4-g64", "kmeans4", "bnb-nf4", "quanto-int4"),
    "Fewer and fewer bits": ("fp32", "int8", "int4-g64", "int3", "int2"),
}


def model(prefix: str) -> tuple[str, str | None] | None:
    """(name, revision) of the model that was chosen, or None while there is none. Keys begin with `prefix`."""
    from qcore import models

    before = _used_before()
    sources = [BUILT_IN, HUB, *([] if state.public() else [LOCAL]), *([BEFORE] if before else [])]
    source = st.segmented_control(
        "Where the model comes from", sources, default=BUILT_IN, required=True, key=f"{prefix}.source", label_visibility="collapsed",
        persist_state="session",
    )  # fmt: skip
    if source == BUILT_IN:
        known = dict(models.defaults())
        name = st.radio(
            "Model",
            list(known),
            captions=list(known.values()),
            key=f"{prefix}.default",
            label_visibility="collapsed",
            persist_state="session",
        )
        return name, None
    if source == HUB:
        left, right = st.columns([3, 1])
        name = left.text_input("Model id", placeholder="owner/name", key=f"{prefix}.hub", help="As in the model's address on huggingface.co.",
                               persist_state="session")  # fmt: skip
        revision = right.text_input("Revision", placeholder="main", key=f"{prefix}.revision", help="A branch, a tag or a commit.",
                                    persist_state="session")  # fmt: skip
        return (name.strip(), revision.strip() or None) if name.strip() else None
    if source == LOCAL:
        name = st.text_input("Folder with safetensors, or a GGUF file", placeholder="/path/to/model", key=f"{prefix}.path",
                             help="A path on the machine that runs this dashboard.", persist_state="session")  # fmt: skip
        return (name.strip(), None) if name.strip() else None
    return st.selectbox(
        "Model of an earlier run", before, format_func=lambda pair: pair[0] + (f" @ {pair[1]}" if pair[1] else ""), key=f"{prefix}.before"
    )


def checkpoint(name: str, revision: str | None):
    """The model's checkpoint if it can be had at once, else a button that fetches it; None until then. Shows what is wrong with it."""
    from qcore import models
    from qcore.models.names import classify

    with state.shown_errors():
        kind = classify(name, revision, public=state.public())
        key = ("checkpoint", kind.text, kind.revision)
        if kind.kind == "folder" or (kind.kind == "default" and (home() / "models" / kind.text).is_dir()) or state.known(key):
            if kind.kind == "folder":
                return models.resolve(name)  # never remembered: its files may change
            return state.remember(key, lambda: models.resolve(name, revision, public=state.public()))
        st.caption("Not on this machine yet. The run fetches it; or do that now to see what memory it needs.")
        if st.button("Fetch and check", icon=":material/download:", key=f"fetch.{kind.text}"):
            with progress_bar("Fetching") as report:
                state.remember(key, lambda: models.resolve(name, revision, public=state.public(), progress=report))
            st.rerun()
    return None


class progress_bar:  # noqa: N801 (used like a function)
    """A bar for work done inside `with`; gives the function (done, total, text) that moves it, and goes away at the end."""

    def __init__(self, text: str):
        self._slot = st.empty()
        self._text = text

    def __enter__(self) -> Callable[[int, int, str], None]:
        self._slot.progress(0.0, text=self._text)
        return self._report

    def __exit__(self, *exception) -> None:
        self._slot.empty()

    def _report(self, done: int, total: int, text: str = "") -> None:
        label = shielded(text or self._text)
        self._slot.progress(min(1.0, done / total) if total else 0.0, text=f"{label} · {done / total:.0%}" if total else label)


def recipe_names(prefix: str, single: bool = False, default: tuple[str, ...] = START) -> list[str]:
    """Names of recipes, chosen as pills in groups; engines that are missing here are named with the reason."""
    groups, missing = recipe_groups()
    chosen: list[str] = []
    for title, (names, help_text) in groups.items():
        key = f"{prefix}.recipes.{title}"
        chosen += st.pills(title, names, selection_mode="multi", key=key, help=help_text, default=[n for n in names if n in default],
                           persist_state="session") or []  # fmt: skip
    for reason in missing:
        st.caption(f":material/block: {shielded(reason)}")
    return chosen


def recipe_groups() -> tuple[dict[str, tuple[list[str], str]], list[str]]:
    """{title: (names, help)} of the recipes that work here, and a sentence for each library that does not."""
    from qcore import backends

    groups: dict[str, tuple[list[str], str]] = {}
    helps = {
        families.FLOAT.name: "Nothing is quantized. fp32 is the baseline.",
        families.INTEGER.name: "An evenly spaced grid with a scale for each channel or group (-g64: 64 weights share a scale).",
        families.TABLE.name: "16 values that are not evenly spaced, fixed (nf4, fp4) or learned from the weights (kmeans4).",
    }
    for name in recipes.COMMON:
        family = families.family(name).name
        groups.setdefault(family.capitalize(), ([], helps[family]))[0].append(name)
    missing = []
    for name, (engine, _) in ENGINES.items():
        reason = backends.available(engine.library)
        if reason is None:
            groups.setdefault("Other libraries", ([], "The same ideas as other people implement them, for comparison."))[0].append(name)
        elif reason not in missing:
            missing.append(reason)
    return groups, missing


def choose_preset(prefix: str, names: tuple[str, ...]) -> None:
    """Set the pills to `names`; for a button's `on_click`."""
    for title, (members, _) in recipe_groups()[0].items():
        st.session_state[f"{prefix}.recipes.{title}"] = [name for name in members if name in names]


def explained(names: list[str]) -> str:
    """A Markdown list: each recipe's badge and its one line."""
    return "\n".join(f"- {families.badge(name)} {recipes.describe(recipes.parse(name))}" for name in names)


def advanced(prefix: str) -> tuple[list[str], tuple[str, ...], str]:
    """(further recipe names, skip patterns, what becomes of the output head) from the advanced settings."""
    more = st.text_input("More recipes", placeholder="int4-g128-dq, int8-g32", key=f"{prefix}.more", persist_state="session",
                         help="Any name that reads like the ones above, separated by commas: another group size, -sym, -dq, -head8.")  # fmt: skip
    skip = st.text_input("Modules to leave alone", placeholder="layers.0, down_proj", key=f"{prefix}.skip", persist_state="session",
                         help="Patterns matched on the dotted parts of module names, separated by commas: layers.0 is block 0 and not block 10, "
                              "down_proj all down projections. One that matches nothing is an error.")  # fmt: skip
    heads = {"keep": "as loaded", "int8": "8-bit", "same": "like the other weights"}
    head = st.selectbox("Output head and embedding", list(heads), format_func=heads.get, key=f"{prefix}.head", persist_state="session",
                        help="In small models these are a large part of all weights. Applies to the integer and table recipes.")  # fmt: skip
    return split(more), tuple(split(skip)), head


def split(text: str) -> list[str]:
    """The parts of a list that was typed with commas or blanks."""
    return [part for part in text.replace(",", " ").split() if part]


def build(names: list[str], skip: tuple[str, ...], head: str) -> list[Recipe]:
    """Recipes from names and the advanced settings. Raises `InputError` for a name that is none."""
    built = []
    for name in dict.fromkeys(names):
        recipe = recipes.parse(name)
        own = recipe.quantizes and name not in ENGINES
        if skip and recipe.quantizes:
            recipe = recipe.with_modules(skip=skip)
        if head != "keep" and own and "head8" not in name:
            recipe = recipe.with_modules(head=head, embeddings=head)
        built.append(recipe)
    return built


def text(prefix: str) -> str | None:
    """What `qcore.data.load_text` takes: None for the default, "wikitext-2", or a path. Raises `InputError` for an upload that is no text."""
    sources = [DEFAULT_TEXT, WIKITEXT, UPLOAD, *([] if state.public() else [FILE])]
    source = st.segmented_control("Text that is scored", sources, default=DEFAULT_TEXT, required=True, key=f"{prefix}.text",
                                  help=explain("perplexity"), persist_state="session")  # fmt: skip
    if source == DEFAULT_TEXT:
        st.caption("The prose of the Python language reference, from the standard library: works without a network.")
        return None
    if source == WIKITEXT:
        st.caption("WikiText-2 raw, test: what papers report. Fetched from the hub.")
        return "wikitext-2"
    if source == FILE:
        path = st.text_input("UTF-8 text file", placeholder="/path/to/text.txt", key=f"{prefix}.file", persist_state="session")
        if not path.strip():
            raise InputError("No text file was named. Name one, or take the built-in prose.")
        return path.strip()
    upload = st.file_uploader("UTF-8 text file", type=["txt", "md", "rst", "raw", "text"], key=f"{prefix}.upload")
    if upload is None:
        raise InputError("No text was uploaded. Upload one, or take the built-in prose.")
    return str(keep_upload(upload.name, upload.getvalue()))


def keep_upload(name: str, content: bytes) -> Path:
    """Keep an uploaded text in the cache folder, under its own SHA-256, and return its path. Raises `InputError` if it is not text."""
    from qcore import data

    if state.public() and len(content) > state.PUBLIC_UPLOAD:
        raise InputError(f"The text has {len(content) / 1e6:.1f} MB, but this server takes at most {state.PUBLIC_UPLOAD / 1e6:.0f} MB.")
    data.text_from_bytes(name, content)
    folder = home() / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.txt"
    if not final.exists():
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    return final


def conditions(prefix: str) -> dict:
    """The fields of `RunSpec` that say how to measure."""
    number = _number(prefix)
    first, second = st.columns(2)
    with first:
        tokens = number("Tokens scored", "tokens", 4096, 512, explain("tokens") + " More give a steadier perplexity and take longer.")
        prompt = number("Prompt, tokens", "prompt_tokens", 128, 64, "Length of the prompt whose reading is timed. " + explain("prefill"))
    with second:
        window = number("Window, tokens", "window", 512, 128, explain("window"))
        new = number("New tokens", "new_tokens", 32, 16, "How many are written when speed is measured. " + explain("decode"))
    generate = st.toggle("Continue about 20 evaluation prompts and compare the answers", value=True, key=f"{prefix}.generate",
                         help="Facts, arithmetic, code, summaries, other languages. Takes about as long as scoring the text.",
                         persist_state="session")  # fmt: skip
    return {"tokens": tokens, "window": window, "prompt_tokens": prompt, "new_tokens": new, "generate": generate}


def _number(prefix: str) -> Callable[[str, str, int, int, str], int]:
    from qcore.spec import LIMITS

    def ask(label: str, name: str, value: int, step: int, help_text: str) -> int:
        low, high = LIMITS[name]
        high = min(high, state.PUBLIC_LIMITS[name]) if state.public() else high
        return st.number_input(label, low, high, min(value, high), step, key=f"{prefix}.{name}", help=help_text, persist_state="session")

    return ask


def _used_before() -> list[tuple[str, str | None]]:
    from qcore import models
    from qcore.runs import jobs

    known = {name for name, _ in models.defaults()}
    used = dict.fromkeys((status.spec.get("model"), status.spec.get("revision")) for status in jobs.list_runs())
    return [] if state.public() else [pair for pair in used if pair[0] and pair[0] not in known]

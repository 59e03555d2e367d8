"""Choose a model, and read the headers of its checkpoint."""

import streamlit as st

from qcore import library
from qcore.base.home import home, is_public
from qcore.base.progress import Progress
from qcore.jobs import answers
from qcore.models.checkpoint import Checkpoint
from qcore.models.names import classify
from ui import engine, jobs, state
from ui.forms import KEEP
from ui.text import one_line, shielded

BUILT_IN, HUB, LOCAL, BEFORE = "Built in", "Hugging Face hub", "Folder or file", "Used before"
HUB_HELP = "As in the model's URL on huggingface.co."
PATH_HELP = (
    "A path on the machine that runs this dashboard: a folder with config.json and safetensors files, or a "
    ".gguf file."
)


def choose(prefix: str) -> tuple[str, str | None] | None:
    """Return (name, revision) of the chosen model, or None if none is chosen yet."""
    before = _used_before()
    sources = [BUILT_IN, HUB, *([] if is_public() else [LOCAL]), *([BEFORE] if before else [])]
    source = st.segmented_control(
        "Model source",
        sources,
        default=BUILT_IN,
        required=True,
        key=f"{prefix}.source",
        label_visibility="collapsed",
        **KEEP,
    )
    return {BUILT_IN: _built_in, HUB: _from_hub, LOCAL: _local, BEFORE: _before}[source](prefix)


def resolve(name: str, revision: str | None, why: str) -> Checkpoint | None:
    """Return the model's checkpoint if it is on this machine. Otherwise draw a button that fetches it, with
    the reason `why`, and return None. Errors of the model are shown."""
    with state.shown_errors():
        what = classify(name, revision)
        if what.kind == "folder":
            return engine.ask(answers.resolve, name, None)  # never cached: its files may change
        key = ("checkpoint", what.text, what.revision)
        known: Checkpoint | None = state.recall(key)
        if known is not None and not known.folder.is_dir():  # deleted since, to make room for another
            state.forget(key)
            known = None
        if known is not None or (what.kind == "default" and (home() / "models" / what.text).is_dir()):
            return state.remember(key, lambda: engine.ask(answers.resolve, name, revision))
        st.caption(f"Not on this machine yet. {why}")
        if st.button("Fetch and check", icon=":material/download:", key=f"fetch.{what.text}"):
            with ProgressBar("Fetching") as report:
                state.remember(key, lambda: engine.ask(answers.resolve, name, revision, progress=report))
            st.rerun()
    return None


class ProgressBar:
    """A progress bar for the work inside `with`. Entering returns the function (done, total, text) that moves
    the bar; leaving removes it."""

    def __init__(self, text: str):
        self._slot = st.empty()
        self._text = text

    def __enter__(self) -> Progress:
        self._slot.progress(0.0, text=self._text)
        return self._report

    def __exit__(self, *exception) -> None:
        self._slot.empty()

    def _report(self, done: int, total: int, text: str = "") -> None:
        share = min(1.0, done / total) if total else 0.0
        self._slot.progress(share, text=shielded(text or self._text) + (f" · {share:.0%}" if total else ""))


def _built_in(prefix: str) -> tuple[str, None]:
    known = dict(library.defaults())
    name = st.radio(
        "Model",
        list(known),
        captions=list(known.values()),
        key=f"{prefix}.default",
        label_visibility="collapsed",
        **KEEP,
    )
    return name, None


def _from_hub(prefix: str) -> tuple[str, str | None] | None:
    left, right = st.columns([3, 1])
    name = left.text_input(
        "Model id", placeholder="owner/name", key=f"{prefix}.hub", help=HUB_HELP, **KEEP
    ).strip()
    revision = right.text_input(
        "Revision", placeholder="main", key=f"{prefix}.revision", help="A branch, a tag or a commit.", **KEEP
    ).strip()
    return (name, revision or None) if name else None


def _local(prefix: str) -> tuple[str, None] | None:
    name = st.text_input(
        "Folder or GGUF file", placeholder="/path/to/model", key=f"{prefix}.path", help=PATH_HELP, **KEEP
    ).strip()
    return (name, None) if name else None


def _before(prefix: str) -> tuple[str, str | None] | None:
    def show(pair: tuple[str, str | None]) -> str:
        return one_line(pair[0] + (f" @ {pair[1]}" if pair[1] else ""))

    return st.selectbox(
        "Model of an earlier run", _used_before(), format_func=show, key=f"{prefix}.before", **KEEP
    )


def _used_before() -> list[tuple[str, str | None]]:
    """Return the models of earlier runs of this visitor, without the default models."""
    known = {name for name, _ in library.defaults()}
    used = dict.fromkeys(
        (status.request.get("model"), status.request.get("revision")) for status in jobs.list_runs()
    )
    return [pair for pair in used if pair[0] and pair[0] not in known]

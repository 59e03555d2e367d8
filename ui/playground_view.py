"""The playground's controls, and the panes where text appears as it is generated."""

import streamlit as st

from qcore import recipes
from qcore.base.errors import InputError
from qcore.base.home import is_public
from qcore.formats.kv import NONE
from qcore.jobs import answers
from qcore.jobs.resident import Resident
from qcore.results.report import beside_other_work
from ui import diff, engine, families, state
from ui.forms import KEEP
from ui.forms import recipes as recipe_form
from ui.glossary import explain
from ui.playground_session import MOST_RECIPES, MOST_TOKENS, Pane, Session
from ui.text import digits, seconds, shielded, verbatim
from ui.visitor import visitor

REASONS = {"end": "end of text", "length": "length limit reached", "stopped": "stopped"}


def recipes_wanted(prefix: str) -> list[str]:
    """Return the names of the recipes to run: at most four, because they share the machine's memory."""
    offered, _ = recipe_form.groups()
    names = [name for members, _ in offered.values() for name in members]
    return st.multiselect(
        "Recipes",
        names,
        recipe_form.START,
        max_selections=MOST_RECIPES,
        key=f"{prefix}.recipes",
        help=explain("recipe"),
        **KEEP,
    )


def summary(model: tuple[str, str | None] | None, options: dict) -> str:
    """Return one line with the settings of the closed menus."""
    chance = f"temperature {options['temperature']:.1f}" if options["temperature"] else "greedy"
    kept = "" if options["kv"] == NONE else f" · KV cache in {options['kv']}"
    return (
        f"{shielded(model[0]) if model else 'no model'} · {options['new_tokens']} new tokens · {chance}{kept}"
    )


def sampling(prefix: str) -> dict:
    """Return the sampling settings of a request."""
    most = MOST_TOKENS if is_public() else 512
    return {
        "new_tokens": st.slider(
            "New tokens", 8, most, 64, 8, key=f"{prefix}.new_tokens", help=explain("tokens"), **KEEP
        ),
        "temperature": st.slider(
            "Temperature",
            0.0,
            2.0,
            0.0,
            0.1,
            key=f"{prefix}.temperature",
            help=explain("temperature"),
            **KEEP,
        ),
        "top_p": st.slider(
            "Top-p", 0.05, 1.0, 1.0, 0.05, key=f"{prefix}.top_p", help=explain("top-p"), **KEEP
        ),
        "top_k": st.number_input("Top-k", 0, 1000, 0, key=f"{prefix}.top_k", help=explain("top-k"), **KEEP),
        "seed": st.number_input("Seed", 0, 2**31 - 1, 0, key=f"{prefix}.seed", help=explain("seed"), **KEEP),
        "kv": recipe_form.cache(prefix, "The format of the cache while text is generated."),
    }


def controls(
    prefix: str, model: tuple[str, str | None] | None, names: list[str], prompt: str, options: dict
) -> None:
    """Draw the Generate and Stop buttons. A new request replaces the browser session's previous one."""
    session: Session | None = st.session_state.get(f"{prefix}.session")
    busy = session is not None and session.active
    with st.container(horizontal=True):
        go = st.button(
            "Generate", type="primary", icon=":material/edit:", disabled=busy, key=f"{prefix}.write"
        )
        if (
            st.button("Stop", icon=":material/stop_circle:", disabled=not busy, key=f"{prefix}.stop")
            and session
        ):
            session.stop()
    if not go:
        return
    with state.shown_errors():
        if model is None:
            raise InputError("Choose a model first.")
        if not names:
            raise InputError("Choose at least one recipe.")
        if not prompt.strip():
            raise InputError(
                "The prompt is empty. Enter the beginning of a text, or a question with Chat switched on."
            )
        chosen = [recipes.parse(name) for name in recipes.names() if name in names]
        name, revision, chosen = engine.ask(answers.lineup, *model, chosen)
        resident = Resident(name, chosen, revision=revision, process=engine.process())
        st.session_state[f"{prefix}.session"] = Session(
            resident, prompt, chosen, visitor=visitor(), **options
        )
        st.rerun()


def stage(prefix: str) -> None:
    """Draw the panes of the last request, every 0.7 s while text is being generated."""
    session: Session | None = st.session_state.get(f"{prefix}.session")
    if session is None:
        st.info(
            "No text yet. The first request takes longer, because the model is loaded and quantized once "
            "per recipe.",
            icon=":material/forum:",
        )
        return
    if session.active:
        _live(session)
    else:
        _draw(session)


@st.fragment(run_every=0.7)  # redrawing more often noticeably slows generation on two cores
def _live(session: Session) -> None:
    if not session.active:
        st.rerun()
    _draw(session)


def _draw(session: Session) -> None:
    if session.error:
        st.error(verbatim(session.error), icon=":material/error:")
    panes = list(session.panes.values())
    for start in range(0, len(panes), 2 if len(panes) in (2, 4) else 3):
        row = panes[start : start + (2 if len(panes) in (2, 4) else 3)]
        for column, pane in zip(st.columns(len(row)), row, strict=True):
            with column.container(border=True, height="stretch"):
                _pane(pane, panes[0])


def _pane(pane: Pane, first: Pane) -> None:
    st.markdown(
        families.badge(pane.recipe) + (" :small[:gray[reference for the others]]" if pane is first else "")
    )
    if pane.state in ("waiting", "loading"):
        st.progress(pane.fraction, text=shielded(pane.note or "waiting for its turn"))
        return
    if pane.state == "failed":
        st.error(verbatim(pane.note or "No text was generated."), icon=":material/error:")
        return
    text = pane.text if pane.text else "…"
    st.markdown(
        verbatim(text) if pane is first or pane.state == "generating" else diff.marked(first.text, text)
    )
    st.caption(_about(pane))


def _about(pane: Pane) -> str:
    result = pane.result
    if pane.state != "done" or not result:
        return "generating…" if pane.state == "generating" else pane.state
    parts = [
        f"**{digits(result['decode_tok_s'])} tok/s**" if result.get("decode_tok_s") else "",
        beside_other_work(result.get("others_share")) or "",
        f"first token after {seconds(result['ttft_s'])}",
        f"{len(result['tokens'])} tokens, {REASONS.get(result['reason'], result['reason'])}",
    ]
    at = result.get("first_divergence")
    if at is not None:
        parts.append(f"identical for {at} tokens")
    return " · ".join(
        part for part in [*parts, *(shielded(note) for note in result.get("notes") or [])] if part
    )

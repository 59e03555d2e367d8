"""What a public server keeps of a visit and for how long, and its limits, taken from the values in force."""

import streamlit as st

from qcore.base.limits import Limits, limits
from qcore.jobs.public import RECIPES, UPLOAD
from ui import jobs, visitor
from ui.text import size

Line = tuple[str, str, str]


def draw() -> None:
    """Draw both tables, and the visitor's own runs with a button that deletes them."""
    allowed = limits()
    if visitor.visitor() is None:
        st.info("This server is private: it keeps everything until you delete it.", icon=":material/lock:")
        return
    st.subheader("What is kept", anchor=False)
    lines = kept(allowed, visitor.returns())
    st.table(
        [dict(zip(("what", "for how long", "who sees it"), line, strict=True)) for line in lines],
        hide_index=True,
    )
    st.subheader("What is not kept", anchor=False)
    st.markdown(
        "Prompts of the playground and their answers stay in memory while this tab is open. This dashboard "
        "does not record addresses of visitors and the pages that they open; its host may do so. No other "
        "site learns of your visit: there are no fonts, images or scripts from elsewhere."
    )
    st.subheader("Limits", anchor=False)
    st.table(
        [{"": name, "value": value} for name, value in granted(allowed)], hide_header=True, hide_index=True
    )
    _own_runs()


def kept(allowed: Limits, returns: bool) -> list[Line]:
    """Return (what, how long, who sees it)."""
    days = f"{allowed.days:g} days after its end"
    cookie = f"{visitor.DAYS} days, in your browser" if returns else "this tab"
    return [
        ("A random number that stands for you, as a cookie; here only its SHA-256", cookie, "nobody"),
        ("Runs: model, settings, figures, answers to the packaged prompts, log", days, "you; the owner"),
        ("Models that a run made, such as exports", f"{days}, or until space is needed", "you; the owner"),
        ("Texts that you uploaded", f"{allowed.days:g} days after the last use", "your runs; the owner"),
        ("Downloaded models of the hub", "until space is needed", "everybody who names them"),
        ("Runs that the owner marked as samples", "until the owner deletes them", "everybody"),
    ]


def granted(allowed: Limits) -> list[tuple[str, str]]:
    """Return (limit, value)."""
    return [
        ("Models", "the built-in ones, and ids of the hub whose weights fit into this machine's memory"),
        ("Recipes per run", f"{RECIPES}"),
        ("Your runs that wait or run", f"{allowed.active}"),
        ("Your runs per hour", f"{allowed.hourly}"),
        ("Time of a run", f"{allowed.minutes:g} minutes; then it is ended, and finished results are kept"),
        ("All runs that wait or run", f"{allowed.queue}, one at a time"),
        ("An uploaded text", size(UPLOAD)),
        ("Models on disk", f"{size(allowed.disk)}; the least recently used ones are deleted first"),
    ]


def _own_runs() -> None:
    own = [each for each in jobs.list_runs() if jobs.is_own(each)]
    ended = [each for each in own if not each.active]
    st.subheader("Your runs", anchor=False)
    if not own:
        st.caption("There are none.")
        return
    st.caption(f"{len(own)} runs are kept, {len(ended)} of them have ended.")
    if ended and st.button("Delete all that have ended", icon=":material/delete:", key="privacy.delete"):
        for each in ended:
            jobs.delete(each.run_id)
        st.rerun()

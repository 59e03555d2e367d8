"""The result of training, pruning or distilling a model: plots, numbers, and the folder of the model."""

import pandas as pd
import streamlit as st

from qcore.base.home import is_public
from qcore.jobs.kinds import KINDS
from qcore.recipes import SAVED
from qcore.results.report import beside_other_work, human_perplexity
from ui import jobs, making_charts, state
from ui.forms.handover import PAGE, hand_over
from ui.glossary import explain
from ui.text import digits, one_line, percent, seconds, shielded, size, visible

WORDS = ("quantization-aware training", "pruning", "distillation", "sparse storage", "KL divergence")


def draw(status: jobs.JobStatus) -> None:
    """Draw the result of one finished job."""
    result = jobs.outcome(status.run_id) or {}
    if not result:
        st.info("The record of this job has been deleted.", icon=":material/info:")
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.caption(_conditions(status, result), width="content")
        with st.popover("Glossary", icon=":material/menu_book:", type="tertiary"):
            for term in WORDS:
                st.markdown(f"**{term[0].upper() + term[1:]}**: {explain(term)}")
    if compared := result.get("compared"):
        st.subheader("Before and after", anchor=False)
        state.plot(
            making_charts.outcome(result),
            key="making.outcome",
            alt="Size, perplexity, divergence and decode speed before and after",
        )
        st.caption(_verdict(result))
        st.caption(
            f"{compared['tokens']:,} tokens of {shielded(compared['text'])} in windows of "
            f"{compared['window']}; decode: {compared['new_tokens']} new tokens after a "
            f"prompt of {compared['prompt_tokens']}, models measured alternately on this machine."
        )
    if history := result.get("history"):
        st.subheader("Training", anchor=False)
        state.plot(
            making_charts.loss(history), key="making.loss", alt="Training loss per step, and validation loss"
        )
    if compared:
        st.subheader("Numbers", anchor=False)
        _table(result)
    if is_public():
        return
    st.caption("The model is saved in this folder. To use it on any page, choose the folder as the model:")
    st.code(visible(result["folder"]), language=None)
    chosen = str(result["model"]), status.request.get("revision")
    beside = {"on_click": hand_over, "args": (chosen, f"{SAVED}{result['folder']}")}
    if st.button("Compare with the original", icon=":material/bar_chart:", key="making.beside", **beside):
        st.switch_page(PAGE)


def _conditions(status: jobs.JobStatus, result: dict) -> str:
    parts = [KINDS[status.kind].title, shielded(str(result["model"])), f"took {seconds(result['seconds'])}"]
    if history := result.get("history"):
        parts += [
            f"{history['step']} steps over {history['tokens']:,} tokens in {seconds(history['seconds'])}",
            f"ended by {history['ended']}",
        ]
    if result.get("sparsity") is not None:
        stored = (
            f" and not stored, which saves bytes from {percent(result['break_even'])} zeros on"
            if "break_even" in result
            else ""
        )
        parts.append(f"{percent(result['sparsity'])} of the weights of linear layers are 0{stored}")
    if result.get("removed") is not None:
        parts.append(f"{percent(result['removed'])} of all weights removed")
    return " · ".join(parts)


def _verdict(result: dict) -> str:
    """Return size and perplexity before and after, and the share of the loss that training recovered."""
    found = result["compared"]
    before, after = found["before"], found["after"]
    words = f"{size(after['stored_bytes'])} instead of {size(before['stored_bytes'])}, perplexity "
    words += f"{human_perplexity(after['perplexity'])} instead of {human_perplexity(before['perplexity'])}."
    if rounded := found.get("rounded"):
        lost, left = rounded["perplexity"] - before["perplexity"], after["perplexity"] - before["perplexity"]
        if "history" in result and lost > 0:
            share = percent(max(0.0, 1 - left / lost))
            words += f" Training recovered {share} of the perplexity lost to rounding."
    return words


def _table(result: dict) -> None:
    lines = [
        {
            "model": one_line(row["label"]),
            "stored": size(row["stored_bytes"]),
            "perplexity": human_perplexity(row["perplexity"]),
            "KL, nats": digits(row["kl_mean"]),
            "decode, tok/s": digits(row["decode_tok_s"]),
        }
        for row in making_charts.rows(result)
    ]
    st.dataframe(pd.DataFrame(lines), hide_index=True, key="making.table")
    if mark := beside_other_work(result["compared"].get("others_share")):
        st.caption(f":material/warning: Speeds {mark}.")

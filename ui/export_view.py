"""One finished export: its size, its files with downloads, the command that runs it, and what to do next."""

from pathlib import Path

import streamlit as st

from qcore.base.home import is_public
from qcore.library.exports import TARGETS
from qcore.recipes import FILE
from ui import jobs, state
from ui.forms.handover import PAGE, hand_over
from ui.text import digits, seconds, shielded, size, verbatim, visible

LARGEST = 2_000_000_000  # bytes of a file that the server holds in memory to send it


def draw(status: jobs.JobStatus) -> None:
    """Draw one finished export."""
    result, made = jobs.outcome(status.run_id) or {}, jobs.result_folder(status.run_id)
    if not result or made is None:
        st.info("The record of this export has been deleted.", icon=":material/info:")
        return
    target, folder = TARGETS[result["to"]], Path(made)
    st.markdown(
        f"**{size(result['stored_bytes'])}**, {digits(result['bits_per_weight'])} bits per weight, in "
        f"{seconds(result['seconds'])}: {shielded(state.model_of(status))} as {shielded(result['recipe'])} "
        f"for {shielded(target.words)}."
    )
    if not folder.is_dir():
        st.warning("The folder of this export has been moved or deleted.", icon=":material/folder_off:")
        return
    for note in result["notes"]:
        st.caption(verbatim(note))
    st.subheader("Files", anchor=False)
    for name in result["files"]:
        _file(folder / name)
    file = folder / result["files"][0]
    if not is_public():
        st.caption("The folder, with tokenizer, licence and model card:")
        st.code(visible(str(folder)), language=None)
    if target.usage:
        st.subheader("Run it", anchor=False)
        place = Path(folder.name) if is_public() else folder
        st.code(visible(target.usage.format(folder=place, file=place / file.name)), language="bash")
    if is_public():
        return
    st.subheader("Prove it", anchor=False)
    st.caption(
        "Measure the exported codes beside the original, on a text of your choice: perplexity, divergence, "
        "memory and speed."
    )
    row = f"{FILE}{file if target.name == 'gguf' else folder}"
    chosen = str(result["model"]), status.request.get("revision")
    if st.button(
        "Measure it beside the original",
        icon=":material/bar_chart:",
        key="export.prove",
        on_click=hand_over,
        args=(chosen, row),
    ):
        st.switch_page(PAGE)


def _file(file: Path) -> None:
    """Draw a line with the name, size and download of one file."""
    with st.container(horizontal=True, vertical_alignment="center"):
        bytes_ = file.stat().st_size if file.is_file() else None
        st.markdown(
            f"**{shielded(file.name)}** {'is gone' if bytes_ is None else size(bytes_)}", width="content"
        )
        if bytes_ is None:
            return
        if bytes_ > LARGEST:
            st.caption("Too large to send through the browser: copy it from the folder.", width="content")
            return
        st.download_button(
            "Download",
            file.read_bytes,  # read when the button is pressed
            file_name=file.name,
            mime="application/octet-stream",
            icon=":material/download:",
            key=f"export.file.{file.name}",
        )

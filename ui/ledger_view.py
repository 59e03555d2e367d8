"""The ledger of a recipe on a model, from the newest run: each tensor, its format, the reason if it was
kept."""

import streamlit as st

from qcore.models.checkpoint import Checkpoint
from qcore.recipes.spec import absolute_model
from ui import jobs, state
from ui.glossary import explain
from ui.text import cell, size
from ui.visitor import visitor


def draw(checkpoint: Checkpoint, recipe: str) -> None:
    """Draw the ledger of `recipe` on the model of `checkpoint`, or a link to the page that makes it."""
    st.subheader(
        "Ledger", anchor=False, help="Each tensor of the model, its format, and the reason if it was kept."
    )
    with state.shown_errors():
        newest = tuple((status.run_id, status.state) for status in jobs.list_runs("compare")[:3])
        key = ("ledger", checkpoint.name, checkpoint.key, recipe, newest, visitor())
        row = state.remember(key, lambda: _row(checkpoint, recipe))
        if row is None:
            st.caption(f"The ledger of {recipe} on this model appears here after a run.")
            st.page_link("pages/quantize.py", label="Go to Quantize", icon=":material/compress:")
            return
        table(row)


def _row(checkpoint: Checkpoint, recipe: str) -> dict | None:
    """Return the newest row of `recipe` on these weights; None without one."""
    for row in jobs.latest_rows(absolute_model(checkpoint.name)):
        if row["recipe"] == recipe and row["record"]["digest"] == checkpoint.digest:
            return row
    return None


def table(row: dict) -> None:
    """Draw one row per tensor, largest first."""
    tensors = sorted(row["record"]["ledger"]["rows"], key=lambda tensor: -tensor["bytes_before"])
    lines = [
        {
            "tensor": cell(tensor["name"]),
            "shape": " × ".join(map(str, tensor["shape"])),
            "weights": tensor["weights"],
            "dtype": tensor["dtype"],
            "format": tensor["format"] or "kept",
            "before, MB": tensor["bytes_before"] / 1e6,
            "after, MB": tensor["bytes_after"] / 1e6,
            "bits/weight": 8 * tensor["bytes_after"] / tensor["weights"] if tensor["weights"] else None,
            "why it was kept": tensor["reason"] or "",
        }
        for tensor in tensors
    ]
    before, after = (sum(tensor[key] for tensor in tensors) for key in ("bytes_before", "bytes_after"))
    kept = sum(tensor["format"] is None for tensor in tensors)
    st.caption(
        f"{len(tensors)} tensors, {kept} kept unquantized: {size(before)} before, {size(after)} after. "
        f"From run {row.get('run_id', '')}."
    )
    number = st.column_config.NumberColumn
    st.dataframe(
        lines,
        hide_index=True,
        height=360,
        column_config={
            "weights": number(format="localized"),
            "before, MB": number(format="%.3f"),
            "after, MB": number(format="%.3f", help=explain("stored bytes")),
            "bits/weight": number(format="%.2f", help=explain("bits per weight")),
        },
    )

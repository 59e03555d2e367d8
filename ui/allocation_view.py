"""Mixed-precision recipes on the compare page: size versus predicted loss, and predicted versus measured."""

import streamlit as st

from ui import sensitivity_charts, state
from ui.glossary import explain
from ui.text import digits, shielded


def draw(rows: list[dict]) -> None:
    """For each mixed-precision row, draw the frontier of allocations and a sentence about the chosen one."""
    for position, (row, found) in enumerate(_mixed(rows)):
        if position == 0:
            st.subheader("Mixed precision", anchor=False, help=explain("mixed precision"))
        measured = row["kl_mean"]
        points = [] if measured is None else [(row["label"], row["bits_per_weight"], measured)]
        chosen = (found["bits_per_weight"], found["predicted_kl"])
        figure = sensitivity_charts.frontier(found["frontier"], found["single"], chosen, points)
        state.plot(
            figure,
            key=f"compare.mixed.{position}",
            alt=f"Predicted loss against bits per weight, with {row['label']} marked",
        )
        st.caption(_sentence(row, found))


def _mixed(rows: list[dict]) -> list[tuple[dict, dict]]:
    pairs = [(row, (row["record"].get("ledger") or {}).get("allocation")) for row in rows]
    return [(row, found) for row, found in pairs if found]


def _sentence(row: dict, found: dict) -> str:
    formats = ", ".join(f"{count} × {shielded(label)}" for label, count in found["layers_by_format"].items())
    measured = "" if row["kl_mean"] is None else f"; measured {digits(row['kl_mean'])} nats"
    if found["exact"]:
        proof = "optimal within the budget"
    elif found["budget"]["unit"] == "kl":  # the bound is one of bytes
        proof = "a smaller allocation within the loss may exist"
    else:
        proof = f"at most {digits(found['predicted_kl'] - found['bound'])} above the minimum"
    text = shielded(found["measure"]["text"]["name"])
    tokens = f"{found['measure']['tokens']:,} tokens"
    return (
        f"**{shielded(row['label'])}**: {formats}; {found['bits_per_weight']:.3f} bits per weight. Loss per "
        f"token: predicted {digits(found['predicted_kl'])} nats, summed over layers ({proof}; from {tokens} "
        f"of {text}){measured}."
    )

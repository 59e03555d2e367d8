"""Parts of the sensitivity page: conditions, sensitivity per layer, predicted against measured,
allocation."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from qcore.base.errors import QcoreError
from qcore.formats.budget import Budget
from qcore.quantization.sensitivity.allocation import frontier
from qcore.quantization.sensitivity.table import Sensitivities
from qcore.quantization.sensitivity.within import solve_within
from ui import jobs, state
from ui import sensitivity_charts as charts
from ui.glossary import explain
from ui.text import cell, clock, digits, one_line, percent, seconds, shielded, verbatim

TOP = 0.1  # share of the layers whose part of the loss is reported
START = 4.25
WORDS = (
    "sensitivity",
    "predicted loss",
    "measured KL",
    "error of the output",
    "rank correlation",
    "mixed precision",
    "bits per weight",
)


def title(table: Sensitivities, models: dict[str, str]) -> str:
    """Return the name of a table in the list."""
    about = table.conditions
    measured = ", measured" if table.measured else ""
    formats = f"{len(table.formats)} formats{measured}"
    return one_line(
        " · ".join([_model(table, models), about["method"], formats, clock(about.get("made_at"))])
    )


def models_of_runs() -> dict[str, str]:
    """Return {digest: model} of finished runs: a table that a recipe saved contains only the digest."""
    found: dict[str, str] = {}
    for status in jobs.list_runs():
        for row in state.rows(status) if status.state == "done" else ():
            record = row.get("record") or {}
            if record.get("digest"):
                found[record["digest"]] = state.model_of(status)
    return found


def draw(key: str, table: Sensitivities, models: dict[str, str]) -> None:
    """Draw one table."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.caption(_conditions(table, models), width="content")
        with st.popover("Glossary", icon=":material/menu_book:", type="tertiary"):
            for term in WORDS:
                st.markdown(f"**{term[0].upper() + term[1:]}**: {explain(term)}")
    st.subheader("Sensitivity per layer", anchor=False, help=explain("sensitivity"))
    measures = {"Predicted loss": "loss", "Measured KL": "kl", "Error of the output": "output_error"}
    if not table.measured:
        del measures["Measured KL"]
    with st.container(horizontal=True, gap="large"):
        label = st.segmented_control(
            "Format", table.labels, default=table.labels[0], required=True, key=f"sensitivity.format.{key}"
        )
        measure = st.segmented_control(
            "Measure",
            list(measures),
            default=next(iter(measures)),
            required=True,
            key=f"sensitivity.measure.{key}",
        )
    k = table.labels.index(label)
    alt = f"{measure} of each layer in {label}, by block and kind of module"
    state.plot(charts.sensitivity_map(table, measures[measure], k), key="sensitivity.map", alt=alt)
    _summary(table, measures[measure], k)
    if table.measured:
        _agreement(table)
    options = _allocation(key, table)
    st.subheader("All layers", anchor=False)
    _table(table, options)


def _summary(table: Sensitivities, measure: str, k: int) -> None:
    values = sorted(((getattr(layer, measure)[k], layer.name) for layer in table.layers), reverse=True)
    total = sum(value for value, _ in values)
    few = max(1, round(TOP * len(values)))
    share = sum(value for value, _ in values[:few]) / total if total else 0.0
    worst = values[0][1].removesuffix(".weight")
    st.caption(
        f"Each layer alone in {table.labels[k]}, everything else unquantized. The {few} most sensitive of "
        f"{len(values)} layers make up {percent(share)} of the sum; the first is {shielded(worst)}. The "
        "color scale is logarithmic and specific to this format."
    )


def _agreement(table: Sensitivities) -> None:
    found = table.correlations()
    about = table.conditions
    st.subheader("Predicted against measured", anchor=False, help=explain("rank correlation"))
    state.plot(
        charts.agreement(table),
        key="sensitivity.agreement",
        alt="Predicted loss against measured divergence of each layer and format",
    )
    st.caption(
        f"Spearman's rank correlation with the measured KL: predicted loss {found['loss']['all']:.3f}, error "
        f"of the layer's output {found['output_error']['all']:.3f}, over all layers and formats. Within a "
        "format the predicted loss reaches "
        + ", ".join(f"{found['loss'][label]:.3f} ({label})" for label in table.labels)
        + f". Measured over {about['measured_tokens']:,} tokens, windows of {about['measured_window']}."
    )


def _allocation(key: str, table: Sensitivities) -> Sequence[int] | None:
    """Draw the best allocation within the budget of a slider: its frontier and a map. Return the format index
    per layer, or None."""
    st.subheader("Best allocation within a budget", anchor=False, help=explain("mixed precision"))
    if len(table.formats) < 2:
        st.caption("The table has one format, so there is nothing to choose.")
        return None
    weights = sum(layer.weights for layer in table.layers)
    costs, losses = (
        [list(layer.nbytes) for layer in table.layers],
        [list(layer.loss) for layer in table.layers],
    )
    points = [
        (8 * cost / weights, loss)
        for cost, loss, _ in state.remember(("frontier", key, len(losses)), lambda: frontier(costs, losses))
    ]
    low, high = points[0][0], points[-1][0]
    lowest = int(20 * low + 1) / 20
    bits = st.slider(
        "Maximum bits per weight",
        lowest,
        max(lowest + 0.05, int(20 * high) / 20),
        min(max(START, lowest), high),
        0.05,
        "%.2f",
        key=f"sensitivity.bits.{key}",
        help=explain("bits per weight"),
        width=520,
    )
    try:
        found = solve_within(Budget(bits, "bpw", table.formats), table.layers, 0, weights, 0)
    except QcoreError as error:
        st.error(verbatim(str(error)), icon=":material/error:")
        return None
    chosen = (
        8 * sum(costs[i][k] for i, k in enumerate(found.options)) / weights,
        sum(losses[i][k] for i, k in enumerate(found.options)),
    )
    singles = {
        label: (8 * sum(cost[k] for cost in costs) / weights, sum(loss[k] for loss in losses))
        for k, label in enumerate(table.labels)
    }
    figure = charts.frontier(points, singles, chosen, _measured_runs(table))
    state.plot(
        figure,
        key="sensitivity.frontier",
        alt="Predicted loss against bits per weight, with the chosen allocation",
    )
    suffix = "" if table.conditions["method"] == "rtn" else f"-{table.conditions['method']}"
    proof = "No allocation within the budget has a lower predicted loss" + (
        "" if found.exact else f" than {digits(found.bound)}"
    )
    st.caption(
        f"{chosen[0]:.3f} bits per weight, predicted loss {digits(chosen[1])} nats per token: the sum of the "
        f"layers' losses. {proof}. As a recipe, with the default formats: `auto-{bits:g}bpw{suffix}`."
    )
    state.plot(
        charts.allocation_map(table, found.options),
        key="sensitivity.chosen",
        alt="The format of each layer in the chosen allocation",
    )
    return found.options


def _measured_runs(table: Sensitivities) -> list[tuple[str, float, float]]:
    """Return (recipe, bits per weight, KL) of finished runs of the same model: mixed-precision recipes, and
    the formats of the table."""
    found: dict[str, tuple[str, float, float]] = {}
    names = {format.label.replace("int8-sym", "int8") for format in table.formats}
    method = table.conditions["method"]
    wanted = {name if method == "rtn" else f"{name}-{method}" for name in names}
    for status in jobs.list_runs():
        for row in state.rows(status) if status.state == "done" else ():
            record = row.get("record") or {}
            own = record.get("digest") == table.conditions.get("digest") and row.get("kl_mean") is not None
            allocation = (record.get("ledger") or {}).get("allocation") or {}
            if own and (allocation.get("method") == method or row["recipe"] in wanted):
                found.setdefault(row["recipe"], (row["recipe"], row["bits_per_weight"], row["kl_mean"]))
    return list(found.values())


def _table(table: Sensitivities, options: Sequence[int] | None) -> None:
    lines = []
    for i, layer in enumerate(table.layers):
        line = {"layer": cell(layer.name.removesuffix(".weight")), "weights": layer.weights}
        if options is not None:
            line["chosen"] = table.labels[options[i]]
        for k, label in enumerate(table.labels):
            line[f"{label}, predicted"] = layer.loss[k]
            if layer.kl is not None:
                line[f"{label}, measured"] = layer.kl[k]
        lines.append(line)
    config = {
        name: st.column_config.NumberColumn(format="%.2e")
        for name in lines[0]
        if name not in ("layer", "weights", "chosen")
    }
    config |= {
        "layer": st.column_config.TextColumn(pinned=True),
        "weights": st.column_config.NumberColumn(format="localized"),
    }
    st.dataframe(
        pd.DataFrame(lines), hide_index=True, height=320, key="sensitivity.table", column_config=config
    )
    st.caption("KL divergence in nats per token.")


def _conditions(table: Sensitivities, models: dict[str, str]) -> str:
    about = table.conditions
    parts = [
        shielded(_model(table, models)),
        f"method {about['method']}",
        f"text: {shielded(about['text']['name'])}",
        f"{about['tokens']:,} tokens, windows of {about['window']}",
        f"{about['samples']} samples per prediction",
        *([f"model prepared by {about['prepare']}"] if about.get("prepare", "none") != "none" else []),
        *([f"computed in {seconds(about['seconds'])}"] if about.get("seconds") else []),
        *([f"measured in {seconds(about['measured_seconds'])}"] if about.get("measured_seconds") else []),
    ]
    return " · ".join(parts)


def _model(table: Sensitivities, models: dict[str, str]) -> str:
    about = table.conditions
    return (
        about.get("model")
        or models.get(about.get("digest") or "")
        or f"model {(about.get('digest') or '?')[:8]}"
    )

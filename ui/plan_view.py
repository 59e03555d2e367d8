"""Parts of the plan page: outline of the model, requirements, recommendation, probe, table."""

import json
from collections.abc import Sequence

import streamlit as st

from qcore.base.errors import InputError
from qcore.base.home import home, is_public
from qcore.jobs import answers
from qcore.jobs.kind_probe import ProbeRequest
from qcore.measurement.memory import available_bytes
from qcore.models.checkpoint import Checkpoint
from qcore.models.names import classify
from qcore.planning.machines import machines
from qcore.planning.types import DISTURBED, RECIPES, Band, Plan, PlanRow
from ui import engine, jobs, plan_charts, state
from ui.forms import KEEP, model
from ui.forms import recipes as recipe_form
from ui.forms.handover import PAGE, hand_over
from ui.glossary import explain
from ui.text import cell, digits, percent, shielded, size, verbatim

HERE, AMOUNT = "Free on this machine", "Other amount"
ROUGHLY = 100_000_000  # bytes of free memory by which a plan is made again
SOURCES = {
    "measured": "green",
    "counted": "green",
    "probed": "blue",
    "estimated": "orange",
    DISTURBED: "orange",
}
FIGURES = {
    "stored_bytes": "stored bytes",
    "peak_load_bytes": "peak while loading",
    "peak_run_bytes": "peak while running",
    "decode_tok_s": "decode",
}


def outlined(name: str, revision: str | None) -> Checkpoint | None:
    """Return the model's outline if it is at hand. Otherwise draw a button that reads it and return None."""
    with state.shown_errors():
        what = classify(name, revision)
        if what.kind == "folder":
            return engine.ask(answers.outline, name, None)  # never cached: its files may change
        key = ("outline", what.text, what.revision)
        if (
            state.recall(key) is not None
            or what.kind == "gguf"
            or (what.kind == "default" and (home() / "models" / what.text).is_dir())
        ):
            return state.remember(key, lambda: engine.ask(answers.outline, name, revision))
        fetched = what.kind == "default"
        st.caption(
            "Not on this machine yet."
            if fetched
            else "Only the headers are read, a few kilobytes; no weights are downloaded."
        )
        if st.button(
            "Fetch it" if fetched else "Look it up",
            icon=":material/travel_explore:",
            key=f"outline.{what.text}",
            type="primary",
        ):
            with model.ProgressBar("Reading headers") as report:
                state.remember(key, lambda: engine.ask(answers.outline, name, revision, progress=report))
            st.rerun()
    return None


def needs(prefix: str, positions: int, formats: Sequence[str]) -> dict:
    """Return the requirements as arguments of `planning.plan`. `positions`: the longest context of the model.
    `formats`: the formats of the KV cache that the model supports."""
    first, second, third, fourth = st.columns([2, 1, 2, 2])
    context = first.number_input(
        "Context, tokens",
        16,
        positions,
        min(2048, positions),
        256,
        key=f"{prefix}.context",
        help=explain("context"),
        **KEEP,
    )
    users = second.number_input(
        "Users",
        1,
        10_000,
        1,
        key=f"{prefix}.users",
        help="Sequences held in the KV cache at the same time.",
        **KEEP,
    )
    where = third.selectbox(
        "Memory",
        [HERE, AMOUNT, *(machine.name for machine in machines())],
        key=f"{prefix}.memory",
        help=explain("peak memory"),
        **KEEP,
    )
    kv = fourth.segmented_control(
        "KV cache",
        list(formats),
        default="fp32",
        required=True,
        key=f"{prefix}.kv",
        help=explain("KV cache"),
        **KEEP,
    )
    amount = (
        st.text_input("Memory, such as 16GB", "16GB", key=f"{prefix}.amount", **KEEP)
        if where == AMOUNT
        else None
    )
    with st.expander("Recipes and limits", icon=":material/tune:"):
        offered, _ = recipe_form.groups()
        names = [
            *RECIPES,
            *(name for members, _ in offered.values() for name in members if name not in RECIPES),
        ]
        chosen = st.multiselect(
            "Recipes", names, list(RECIPES), key=f"{prefix}.recipes", help=explain("recipe"), **KEEP
        )
        left, right = st.columns(2)
        least = left.number_input(
            "Minimum decode speed, tok/s",
            0.0,
            None,
            0.0,
            1.0,
            key=f"{prefix}.least",
            help=explain("decode") + " 0: no minimum.",
            **KEEP,
        )
        most = right.number_input(
            "Maximum KL divergence, nats",
            0.0,
            None,
            0.0,
            0.01,
            format="%.3f",
            key=f"{prefix}.kl",
            help=explain("KL divergence") + " 0: no maximum.",
            **KEEP,
        )
    return {
        "recipes": chosen,
        "context": context,
        "users": users,
        "kv": (kv, *(name for name in formats if name != kv)),
        "memory": None if where == HERE else amount if where == AMOUNT else where,
        "min_tokens_per_second": least or None,
        "max_kl": most or None,
    }


def planned(outline: Checkpoint, needs: dict) -> Plan:
    """Return the plan of a model, made again only after a run has ended or with other `needs`."""
    visible, free = jobs.visible_ids(), available_bytes() // ROUGHLY
    key = ("plan", outline.key, outline.name, json.dumps(needs), _newest(), visible, free)
    return state.remember(key, lambda: engine.ask(answers.plan, outline, needs, visible))


def recommendation(prefix: str, plan: Plan, chosen: tuple[str, str | None]) -> None:
    """Draw the recommended recipe, the reason, its figures with sources, and a link to the page Quantize."""
    best = plan.recommendation.best
    with st.container(border=True):
        st.markdown(f":material/{'recommend' if best else 'block'}: {verbatim(plan.recommendation.sentence)}")
        if best is None:
            return
        row = next(row for row in plan.rows if (row.recipe, row.kv) == (best.recipe, best.kv))
        figures = [
            ("Stored", size(row.stored_bytes), row.sources["stored"]),
            ("Running", size(row.run_bytes), row.sources["peak"]),
            (
                "Decode",
                "–" if row.decode_tok_s is None else f"{digits(row.decode_tok_s)} tok/s",
                row.sources.get("decode", "not probed"),
            ),
            (
                "KL divergence",
                "–" if row.kl is None else f"{digits(row.kl)} nats",
                row.sources.get("quality", "unknown"),
            ),
        ]
        with st.container(horizontal=True, vertical_alignment="center"):
            for label, value, source in figures:
                st.markdown(
                    f"{label} **{value}** :{SOURCES.get(source, 'gray')}-badge[{source}]", width="content"
                )
        if row.recipe not in ("as it is",) and st.button(
            f"Quantize with {row.recipe}",
            icon=":material/compress:",
            key=f"{prefix}.go",
            on_click=hand_over,
            args=(chosen, row.recipe),
        ):
            st.switch_page(PAGE)


def probing(prefix: str, chosen: tuple[str, str | None], names: Sequence[str], probed: dict | None) -> None:
    """Draw the button that starts the probe, or the progress of the probe."""
    run_id = st.session_state.get(f"{prefix}.probing")
    probe = _probe(run_id)
    if probe is not None and probe.active:
        _live(run_id, prefix)
        return
    if probe is not None and probe.error:
        st.warning(verbatim(probe.error), icon=":material/timer_off:")
    known = set() if probed is None else {*probed["recipes"]} - {*probed["disturbed"]}
    missing = [name for name in names if name not in known]
    if missing:
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button(
                f"Probe the speed of {len(missing)} recipes",
                icon=":material/timer:",
                key=f"{prefix}.probe",
                type="primary",
            ):
                with state.shown_errors():
                    name, revision = chosen
                    request = ProbeRequest(model=name, revision=revision, recipes=tuple(missing))
                    st.session_state[f"{prefix}.probing"] = jobs.submit(request)
                    st.rerun()
            st.caption(explain("probe"))


def table(rows: Sequence[PlanRow]) -> None:
    """Draw all figures, one row per recipe."""
    columns = {
        "recipe": [row.recipe for row in rows],
        "stored": [size(row.stored_bytes) for row in rows],
        "bits per weight": [digits(row.bits_per_weight) for row in rows],
        "KV cache": [size(row.kv_bytes) for row in rows],
        "running": [size(row.run_bytes) for row in rows],
        "quantizing": [size(row.load_bytes) for row in rows],
        "quantizing, streamed": ["–" if row.stream_bytes is None else size(row.stream_bytes) for row in rows],
        "fits": ["yes" if row.fits else "no" for row in rows],
        "decode": [_rate(row.decode_tok_s, row.sources.get("decode")) for row in rows],
        "prefill": [_rate(row.prefill_tok_s, row.sources.get("prefill")) for row in rows],
        "KL": ["–" if row.kl is None else f"{digits(row.kl)} ({row.sources['quality']})" for row in rows],
        "perplexity ratio": [
            "–" if row.perplexity_ratio is None else digits(row.perplexity_ratio) for row in rows
        ],
        "notes": [cell(" ".join(row.notes)) for row in rows],
    }
    st.dataframe(columns, hide_index=True, width="stretch")


def accelerators(plan: Plan) -> None:
    """Draw the recipes that fit on well-known accelerators."""
    st.dataframe(
        {
            "accelerator": [each["name"] for each in plan.machines],
            "memory": [size(each["bytes"]) for each in plan.machines],
            "recipes that fit": [", ".join(each["fits"]) or "none" for each in plan.machines],
        },
        hide_index=True,
        width="stretch",
    )


def error_band() -> None:
    """Draw the error of earlier plans on this machine."""
    found: list[Band] = []
    visible = jobs.visible_ids()
    with state.shown_errors():
        key = ("error bands", _newest(), visible)
        found = state.remember(key, lambda: engine.ask(answers.error_bands, visible))
    if not found:
        st.caption(
            "No run on this machine has a prediction yet. Each new run stores one, and its error appears "
            "here."
        )
        return
    for band in found:
        color = "green" if band.within == band.runs else "orange"
        st.markdown(
            f":{color}-badge[{band.within} of {band.runs} within {percent(band.bar)}] "
            f"**{FIGURES[band.figure]}**: median error {percent(band.median)}, "
            f"at worst {percent(abs(band.largest))} too {'high' if band.largest > 0 else 'low'}"
        )


def shown(plan: Plan, kv: str) -> list[PlanRow]:
    """Return the rows of the plan whose cache has the format `kv`."""
    return [row for row in plan.rows if row.kv == kv]


def pictures(prefix: str, plan: Plan, kv: str) -> None:
    """Draw the memory of each recipe against the available memory."""
    rows = shown(plan, kv)
    st.subheader("Memory while running", anchor=False, help=explain("peak memory"))
    st.markdown(plan_charts.legend())
    state.plot(
        plan_charts.memory(rows, plan.memory, plan.memory_is),
        key=f"{prefix}.bars",
        alt="Memory of each recipe by part",
    )
    st.caption(
        f"{digits(plan.parameters / 1e6)} million weights, {size(plan.checkpoint_bytes)} stored as "
        f"{', '.join(plan.dtypes)}. KV cache: {plan.cache_layout}; {plan.context:,} tokens for {plan.users} "
        f"user{'s' if plan.users > 1 else ''}. {shielded(plan.description)}"
    )


def speeds(prefix: str, plan: Plan, kv: str) -> None:
    """Draw the predicted speed of the probed recipes, and the warnings of the plan."""
    timed = [row for row in shown(plan, kv) if row.decode_tok_s]
    if timed:
        state.plot(
            plan_charts.speed(timed),
            key=f"{prefix}.speed",
            alt="Predicted decode and prefill speed of each recipe",
        )
        st.caption(
            f"For one user with {plan.context:,} tokens in the cache; {plan.probed['threads']} threads; read "
            f"bandwidth of this machine: {size(plan.probed['bandwidth'])}/s."
        )
    for warning in plan.warnings:
        st.warning(verbatim(warning), icon=":material/speed:")


def _newest() -> tuple:
    """Return what changes when a run ends that a plan reads: a comparison or a probe."""
    return tuple((status.run_id, status.finished_at) for status in jobs.list_runs("compare", "probe")[:3])


def _probe(run_id: str | None) -> jobs.JobStatus | None:
    """Return the status of the probe that this session started; None if none exists."""
    try:
        return None if run_id is None else jobs.status(run_id)
    except InputError:
        return None


@st.fragment(run_every=1.0)
def _live(run_id: str, prefix: str) -> None:
    probe = _probe(run_id)
    if probe is None or not probe.active:
        st.rerun()
    steps = f"{probe.done} of {probe.total} · " if probe.total else ""
    st.progress(probe.fraction, text=f"{steps}{shielded(probe.phase)}")
    if st.button("Cancel", icon=":material/stop_circle:", key=f"{prefix}.cancel"):
        jobs.cancel(run_id)
        st.rerun()


def _rate(value: float | None, source: str | None) -> str:
    return "–" if value is None else f"{digits(value)} tok/s ({source})"


def public_names(names: Sequence[str]) -> list[str]:
    """Return `names`, on a public server as many as it probes at a time."""
    return list(names)[: state.PUBLIC_RECIPES] if is_public() else list(names)

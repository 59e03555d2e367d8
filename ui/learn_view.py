"""Controls, plots and numbers of the lessons. The worker process computes them from one real weight, see
`qcore.verbs.lessons`."""

from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qcore import recipes
from qcore.formats.uniform import Uniform
from qcore.jobs import answers
from qcore.models.checkpoint import Checkpoint
from qcore.verbs.lesson_types import FACTORS, Clipped, Learned, Rounded, WeightOutline
from ui import engine, learn_charts, learn_lessons, state
from ui.learn_charts import BLUE, GREEN, ORANGE, RED, VIOLET
from ui.memo import Memo
from ui.text import digits, percent

PREFIX = "learn"
GRIDS = {"int4-g64": BLUE, "int4-g64-sym": BLUE, "nf4-g64": VIOLET, "fp4-g64": VIOLET, "kmeans4-g64": VIOLET}
STORED = (
    "int8",
    "int4-g128",
    "int4-g64",
    "int4-g64-sym",
    "int4-g64-dq",
    "int4-g32",
    "nf4-g64",
    "nf4-g64-dq",
    "kmeans4",
    "int3-g64",
    "int2-g64",
)
CODES = {
    "typical": "a typical group",
    "outlier": "the group with the largest outlier",
    "lopsided": "the most lopsided group",
}
TAUGHT_STEPS = 60


def draw(
    lesson: learn_lessons.Lesson, sample: WeightOutline | None, checkpoint: Checkpoint | None = None
) -> None:
    """Draw the lesson: text, controls, plots and numbers. Without a `sample` of the `checkpoint`, draw the
    text alone."""
    st.subheader(lesson.title, anchor=False)
    left, right = st.columns([0.34, 0.66], gap="large")
    with left:
        st.markdown(lesson.text)
    if sample is not None and checkpoint is not None:
        with (
            state.shown_errors(),
            st.spinner("Computing… The first time, kernels are compiled for this machine."),
        ):
            DRAW[lesson.key](_Known(sample, checkpoint), left, right)
    else:
        right.info("Fetch the model above to see this on one of its weights.", icon=":material/school:")
    links(lesson)


def links(lesson: learn_lessons.Lesson) -> None:
    """Link to the page that uses the idea and to its papers."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(lesson.page[0], label=lesson.page[1], icon=":material/arrow_forward:", width="content")
        for title, number in lesson.papers:
            st.link_button(
                f"{title} · arXiv {number}",
                learn_lessons.ARXIV + number,
                icon=":material/article:",
                type="tertiary",
            )


@st.cache_resource(show_spinner=False)
def _memo() -> Memo:
    return Memo(400)


class _Known:
    """A weight, and a cache of the results computed from it: moving a slider back costs nothing."""

    def __init__(self, sample: WeightOutline, checkpoint: Checkpoint):
        self.sample, self._checkpoint = sample, checkpoint

    def __call__(self, what: str, *arguments: Any):
        """Return the figures of the function `what` of `qcore.verbs.lessons`."""
        key = (self._checkpoint.key, self.sample.name, what, *arguments)
        return _memo().remember(
            key, lambda: engine.ask(answers.lesson, self._checkpoint, self.sample.name, what, *arguments)
        )

    def place(self, kind: str, size: int = 64) -> int:
        return self("places", min(size, self.sample.shape[1]))[kind]

    def rounded(self, name: str, place: int | None = None) -> Rounded:
        return self("rounded", recipes.parse(name).weights, place)


def _numbers(*figures: tuple[str, str, str | None]) -> None:
    with st.container(horizontal=True):
        for label, value, note in figures:
            st.metric(label, value, note, delta_color="off", delta_arrow="off", border=True)


def _group(key: str) -> str:
    return st.selectbox("Group shown", list(CODES), format_func=CODES.get, key=f"{PREFIX}.{key}.group")


def _grid(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        name = st.pills(
            "Format", list(GRIDS), default="int4-g64", required=True, key=f"{PREFIX}.grid.name", wrap=True
        )
        kind = _group("grid")
    found = {each: known.rounded(each, known.place(kind)) for each in GRIDS}
    one, even = found[name], found["int4-g64"]
    with left:
        against = (
            None
            if name == "int4-g64"
            else f"{one.relative_error / even.relative_error - 1:+.1%} against int4-g64"
        )
        _numbers(
            ("Relative error", percent(one.relative_error), against),
            (
                "Bits per weight",
                digits(one.bits_per_weight),
                f"{percent(one.levels_used)} of the values used here",
            ),
        )
    with right:
        pair = {"int4-g64": even.group} if name == "int4-g64" else {name: one.group, "int4-g64": even.group}
        state.plot(
            learn_charts.lines(pair, GRIDS),
            key=f"{PREFIX}.grid.lines",
            alt="Weights of one group and the values of the codes",
        )
        errors = {each: found[each].relative_error for each in GRIDS}
        state.plot(
            learn_charts.bars(errors, name, "Relative error of the whole weight"),
            key=f"{PREFIX}.grid.bars",
            alt="Relative errors",
        )


def _zero(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        bits = st.slider("Bits", 2, 8, 3, key=f"{PREFIX}.zero.bits")
        kind = _group("zero")
    place = known.place(kind)
    with_zero, without = (
        known.rounded(f"int{bits}-g64{end}", place) for end in ("-asym" if bits == 8 else "", "-sym")
    )
    with left:
        _numbers(
            (
                "Symmetric",
                percent(without.relative_error),
                f"{digits(without.bits_per_weight)} bits per weight",
            ),
            (
                "With a zero point",
                percent(with_zero.relative_error),
                f"{digits(with_zero.bits_per_weight)} bits per weight",
            ),
        )
    with right:
        groups = {"symmetric": without.group, "with a zero point": with_zero.group}
        colors = {"symmetric": ORANGE, "with a zero point": BLUE}
        state.plot(
            learn_charts.lines(groups, colors),
            key=f"{PREFIX}.zero.lines",
            alt="A group on a symmetric grid and with a zero point",
        )
        st.caption("The errors are those of the whole weight; the plot shows the chosen group.")


def _group_size(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        bits = st.slider("Bits", 2, 8, 4, key=f"{PREFIX}.group.bits")
    found = known("group_sizes", bits)
    names = {"channel" if size is None else str(size): size for size in found}
    with left:
        start = "64" if 64 in found else "channel"
        name = st.select_slider(
            "Weights that share a scale", list(names), value=start, key=f"{PREFIX}.group.size"
        )
        one = found[names[name]]
        _numbers(
            ("Relative error", percent(one.relative_error), f"{digits(one.snr_db)} dB signal to noise"),
            (
                "Bits per weight",
                digits(one.bits_per_weight),
                f"{digits(one.bits_per_weight - bits)} for scales and zero points",
            ),
        )
    with right:
        series = {"relative error": ([each.relative_error for each in found.values()], BLUE)}
        labels = [f"{each}<br>{digits(found[size].bits_per_weight)} bits" for each, size in names.items()]
        figure = learn_charts.curves(
            list(names), series, name, "group size and stored bits per weight", labels=labels
        )
        state.plot(figure, key=f"{PREFIX}.group.curve", alt="Relative error by group size")


def _clip(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    shares = [round(1.0 - 0.05 * step, 2) for step in range(13)][::-1]
    with left:
        bits = st.slider("Bits", 2, 6, 3, key=f"{PREFIX}.clip.bits")
        names = {f"{share:.0%}": share for share in shares}
        name = st.select_slider(
            "Grid range, share of the largest weight", list(names), value="100%", key=f"{PREFIX}.clip.share"
        )
        share = names[name]
    format, place = Uniform(bits, 64, True), known.place("outlier")
    found: list[Clipped] = [known("clipped", format, each, place) for each in shares]
    one, best = found[shares.index(share)], min(found, key=lambda each: each.relative_error)
    with left:
        _numbers(
            (
                "Relative error",
                percent(one.relative_error),
                f"{percent(one.weights_cut)} of the weights clipped",
            ),
            ("Best range", percent(best.share), f"error {percent(best.relative_error)}"),
        )
    with right:
        series = {
            "total": ([each.relative_error for each in found], BLUE),
            "clipping": ([each.cut for each in found], RED),
            "rounding": ([each.rounding for each in found], GREEN),
        }
        figure = learn_charts.curves(shares, series, share, "range of the grid", labels=list(names))
        state.plot(figure, key=f"{PREFIX}.clip.curve", alt="Relative error by the range of the grid")
        title = "the group with the largest outlier"
        state.plot(
            learn_charts.lines({title: one.group}, {title: BLUE}),
            key=f"{PREFIX}.clip.line",
            alt="One group on the grid",
        )


def _outlier(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        bits = st.slider("Bits", 2, 8, 4, key=f"{PREFIX}.outlier.bits")
        factor = st.select_slider(
            "Largest weight multiplied by", (1, 2, 3, 5, 8, 12, 20), value=3, key=f"{PREFIX}.outlier.factor"
        )
    format, place = Uniform(bits, 64, True), known.place("typical")
    plain, one = (known("outlier", format, each, place) for each in (1, factor))
    with left:
        _numbers(
            (
                "Error of the other weights",
                percent(one.others_error),
                f"{percent(plain.others_error)} without the outlier",
            ),
            ("Other weights rounded to 0", percent(one.lost), None),
        )
    with right:
        groups = (
            {"unchanged": plain.group}
            if factor == 1
            else {"unchanged": plain.group, f"largest weight × {factor}": one.group}
        )
        colors = {"unchanged": GREEN, f"largest weight × {factor}": RED}
        state.plot(
            learn_charts.lines(groups, colors),
            key=f"{PREFIX}.outlier.lines",
            alt="A group with and without an outlier",
        )


def _dynamic(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        factor = st.select_slider(
            "Scale of one input channel", FACTORS, value=10, key=f"{PREFIX}.dynamic.factor"
        )
        name = st.segmented_control(
            "Weights", ["int8", "int4-g64"], default="int8", required=True, key=f"{PREFIX}.dynamic.weights"
        )
    format = recipes.parse(name).weights
    found = [known("activations", format, each) for each in FACTORS]
    one = found[FACTORS.index(factor)]
    with left:
        _numbers(
            ("Weights only", percent(one.weights_only), None),
            ("One scale per token", percent(one.token), None),
        )
        _numbers(
            ("One scale for all tokens", percent(one.all_tokens), "relative errors of the layer's output")
        )
    with right:
        series = {
            "weights only": ([each.weights_only for each in found], BLUE),
            "8-bit activations, one scale per token": ([each.token for each in found], GREEN),
            "one scale for all tokens": ([each.all_tokens for each in found], RED),
        }
        state.plot(
            learn_charts.curves(FACTORS, series, factor, "scale of one input channel (others: 1)", log=True),
            key=f"{PREFIX}.dynamic.curve",
            alt="Error of the output by size of one channel",
        )
        st.caption(
            "The weight is the model's, the inputs are random: 64 tokens from a normal distribution, one "
            "channel made larger."
        )


def _bits(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        name = st.selectbox("Format", STORED, index=STORED.index("int4-g64"), key=f"{PREFIX}.bits.name")
    found = {each: known.rounded(each) for each in STORED}
    one = found[name]
    with left:
        _numbers(
            (
                "Bits per weight",
                digits(one.bits_per_weight),
                f"{digits(32 / one.bits_per_weight)} times less than float32",
            ),
            ("Overhead", percent(1 - one.parts["codes"] / one.bits_per_weight), "of the stored bits"),
        )
        _numbers(("Relative error", percent(one.relative_error), None))
    with right:
        state.plot(
            learn_charts.bits(found, name), key=f"{PREFIX}.bits.bars", alt="Stored bits per weight by part"
        )


def _learned(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        bits = st.slider("Bits", 2, 4, 3, key=f"{PREFIX}.learned.bits")
        steps = st.slider(
            "Training steps", 0, TAUGHT_STEPS, TAUGHT_STEPS, step=5, key=f"{PREFIX}.learned.steps"
        )
    with right, st.spinner("Training the layer…"):
        found: Learned = known("learn", Uniform(bits, 64, False), TAUGHT_STEPS)
    error = found.rounded if steps == 0 else found.steps[steps - 1]
    with left:
        _numbers(
            ("Error of the output", percent(error), f"{percent(found.rounded)} rounded to nearest"),
            ("Codes that moved", percent(found.moved), f"after {TAUGHT_STEPS} steps"),
        )
    with right:
        series = {"learned": ([found.rounded, *found.steps], BLUE)}
        figure = learn_charts.curves(
            range(TAUGHT_STEPS + 1),
            series,
            steps,
            "training steps",
            line=(found.rounded, "rounded to nearest, after training"),
        )
        state.plot(
            figure,
            key=f"{PREFIX}.learned.curve",
            alt="Error of the layer's output while its codes are trained",
        )
        st.caption(
            f"The first {min(128, known.sample.shape[0])} outputs of this layer, random correlated inputs; "
            "codes and scales are trained."
        )


def _pruning(known: _Known, left: DeltaGenerator, right: DeltaGenerator) -> None:
    with left:
        method = st.segmented_control(
            "Criterion",
            ["magnitude", "2:4"],
            default="magnitude",
            required=True,
            key=f"{PREFIX}.pruning.method",
        )
        share = (
            st.slider("Zeros, %", 0, 90, 50, step=10, key=f"{PREFIX}.pruning.share", disabled=method == "2:4")
            / 100
        )
        bits = st.segmented_control(
            "Bits per weight", [16, 8, 4], default=16, required=True, key=f"{PREFIX}.pruning.bits"
        )
    share = 0.5 if method == "2:4" else share
    found = known("prune", method, share, bits)
    storage = [known("prune", "magnitude", each / 10, bits) for each in range(10)]
    with left:
        _numbers(
            ("Relative error", percent(found.relative_error), f"{percent(found.amount)} zeros"),
            (
                "Stored sparsely",
                f"{digits(found.sparse_bits)} bits",
                f"smaller above {percent(found.break_even)} zeros",
            ),
        )
    with right:
        state.plot(
            learn_charts.pruned(found, storage, bits),
            key=f"{PREFIX}.pruning.both",
            alt="Magnitudes of kept and pruned weights, and stored bits",
        )


DRAW: dict[str, Callable] = {
    "grid": _grid,
    "zero": _zero,
    "group": _group_size,
    "clip": _clip,
    "outlier": _outlier,
    "dynamic": _dynamic,
    "bits": _bits,
    "learned": _learned,
    "pruning": _pruning,
}

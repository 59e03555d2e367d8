"""The plan of `speed.py`: processes, the items that each of them times, and the reported ratios with their
bars.

A `Stage` is a set of processes that take turns: each round measures every item of every process once, in
alternating order. A ratio is taken within a round, where both sides ran under the same conditions, and
reported as the median over the rounds. A shared machine changes its speed by up to 1.4 times for minutes, and
only ratios within a round are robust against that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from statistics import median

from qcore.base.errors import InputError

MODEL = "smollm2-135m"
PROMPT, STEPS, GENERATED = (
    256,
    64,
    32,
)  # tokens read, tokens generated one by one, tokens generated through transformers' generate


@dataclass(frozen=True)
class Process:
    """A process called `name` that runs `peers/<module>.py` and can measure `items`; `needs` are the packages
    that must be installed."""

    name: str
    module: str
    items: tuple[str, ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A rate (larger is better) in `unit`, called `name`, from measuring `item` in `process`."""

    process: str
    item: str
    name: str
    unit: str = "tok/s"


@dataclass(frozen=True)
class Ratio:
    """The ratio `ours` / `theirs`, which should be at least `bar`; `measure` describes it in words."""

    name: str
    measure: str
    ours: Figure
    theirs: Figure
    bar: float


@dataclass(frozen=True)
class Stage:
    """Processes that take turns for `rounds` rounds, and the ratios between them."""

    title: str
    rounds: int
    processes: tuple[Process, ...]
    ratios: tuple[Ratio, ...]


@dataclass
class Samples:
    """The samples of one stage: for each (process, item) one {figure: rate} per round."""

    rounds: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)

    def add(self, process: str, item: str, rates: dict[str, float]) -> None:
        """Add one measurement."""
        self.rounds.setdefault((process, item), []).append(rates)

    def of(self, figure: Figure) -> list[float]:
        """Return the rates of `figure`, one per round."""
        return [rates[figure.name] for rates in self.rounds[figure.process, figure.item]]

    def ratio(self, ratio: Ratio) -> float:
        """Return the median of the ratios within each round."""
        return median(
            ours / theirs for ours, theirs in zip(self.of(ratio.ours), self.of(ratio.theirs), strict=True)
        )


def _own(recipe: str, name: str = "decode") -> Figure:
    return Figure("qcore", recipe, name)


def _llama(kind: str, name: str = "decode") -> Figure:
    return Figure(LLAMA, kind, name)


INT4, INT8, GROUPED = "int4-g32-head8", "int8-head8", "int4-g64-head8"
# the activation precision of llama.cpp and accuracy level 4; the recipe's own 16 bits are 250 times closer
INT4_A8 = f"{INT4}-a8"
NF4, KMEANS = "nf4-g64-head8", "kmeans4-head8"
LLAMA, ORT = "llama.cpp", "onnxruntime-genai"
ORT_INT4, ORT_HEAD8 = (
    "ort-int4",
    "ort-int4-head8",
)  # its builder's default, head in 4 bits; and the format shared by ours and Q4_0
RANDOM = "0.6b"
# GGUF files that `qcore export` writes, by recipe: their names in llama.cpp. K-quants need rows of whole
# super-blocks, which the default model does not have.
EXPORTED = {"gguf-q4_0-head8": "Q4_0", "gguf-q4_k-head8": "Q4_K", "gguf-q4_k_m": "Q4_K_M"}
LIBRARIES = {
    "bnb-nf4": ("bitsandbytes_nf4", "bitsandbytes nf4", ("bitsandbytes",)),
    "torchao-int8": ("torchao_int8", "torchao int8", ("torchao",)),
    "quanto-int8": ("quanto_int8", "optimum-quanto int8", ("optimum-quanto",)),
    "torch-dynamic-int8": ("torch_dynamic_int8", "torch dynamic int8", ()),
}


def _generating(recipe: str, needs: tuple[str, ...] = ()) -> Process:
    return Process(f"generate {recipe}", "generate", (recipe,), needs)


def _generated(recipe: str) -> Figure:
    return Figure(f"generate {recipe}", recipe, "decode")


def _exported(source: str, recipes: tuple[str, ...]) -> Stage:
    """Return the stage of GGUF files made from the model `source`, loaded here and in llama.cpp."""
    ours, theirs = f"qcore, GGUF {source}".strip(), f"{LLAMA}, GGUF {source}".strip()
    items = tuple(f"{source} {recipe}".strip() for recipe in (INT4, *recipes))
    title = f"random Llama of {source.upper()}" if source else "the default model"
    ratios = []
    for item, recipe in zip(items[1:], recipes, strict=True):
        name = f"gguf_{source}_{EXPORTED[recipe].lower()}" if source else f"gguf_{EXPORTED[recipe].lower()}"
        file, loaded = f"decode, {title}, a {EXPORTED[recipe]} file", Figure(ours, item, "decode")
        ratios += [
            Ratio(f"{name}_vs_int4", f"{file} against {INT4}", loaded, Figure(ours, items[0], "decode"), 0.9),
            Ratio(
                f"{name}_vs_llamacpp",
                "… against llama.cpp on the same file",
                loaded,
                Figure(theirs, item, "decode"),
                1.0,
            ),
        ]
    return Stage(
        f"GGUF files that qcore exported, {title}",
        5,
        (Process(ours, "own", items), Process(theirs, "llamacpp", items[1:], ("llama-cpp-python", "gguf"))),
        tuple(ratios),
    )


STAGES = (
    Stage(
        "the default model, whole steps",
        8,
        (
            Process("qcore", "own", (INT4, INT4_A8, INT8, GROUPED, NF4, KMEANS)),
            Process(LLAMA, "llamacpp", ("q4_0", "q8_0"), ("llama-cpp-python", "gguf")),
            Process(ORT, "ortgenai", (ORT_INT4, ORT_HEAD8), ("onnxruntime-genai", "onnxruntime", "onnx-ir")),
        ),
        (
            Ratio(
                "decode_int4_vs_llamacpp_q4_0",
                f"decode, {INT4} against llama.cpp Q4_0",
                _own(INT4),
                _llama("q4_0"),
                1.5,
            ),
            Ratio(
                "decode_int8_vs_llamacpp_q8_0",
                f"decode, {INT8} against llama.cpp Q8_0",
                _own(INT8),
                _llama("q8_0"),
                1.3,
            ),
            Ratio(
                "prefill_int4_vs_llamacpp_q4_0",
                f"prefill of {PROMPT} tokens, {INT4} against llama.cpp Q4_0",
                _own(INT4, "prefill"),
                _llama("q4_0", "prefill"),
                1.2,
            ),
            Ratio(
                "decode_int4_vs_ortgenai_int4",
                f"decode, {INT4} against onnxruntime-genai int4, both with 8-bit activations and head",
                _own(INT4_A8),
                Figure(ORT, ORT_HEAD8, "decode"),
                1.6,
            ),
            Ratio(
                "decode_int4_a8_vs_ortgenai_int4_head4",
                "… with its head in 4 bits",
                _own(INT4_A8),
                Figure(ORT, ORT_INT4, "decode"),
                1.0,
            ),
            Ratio(
                "decode_int4_a16_vs_ortgenai_int4_head4",
                "… and our activations in 16 bits: each as it comes",
                _own(INT4),
                Figure(ORT, ORT_INT4, "decode"),
                1.0,
            ),
            Ratio("decode_nf4_vs_int4", f"decode, {NF4} against {GROUPED}", _own(NF4), _own(GROUPED), 0.8),
            Ratio(
                "decode_kmeans4_vs_int4",
                f"decode, {KMEANS} against {GROUPED}",
                _own(KMEANS),
                _own(GROUPED),
                0.8,
            ),
        ),
    ),
    Stage(
        "a Llama of 0.6 billion random weights",
        5,
        (
            Process(f"qcore {RANDOM}", "own", (f"{RANDOM} {INT4}",)),
            Process(f"{LLAMA} {RANDOM}", "llamacpp", (f"{RANDOM} q4_0",), ("llama-cpp-python", "gguf")),
        ),
        (
            Ratio(
                "decode_int4_0.6b_vs_llamacpp_q4_0",
                f"decode, random Llama of 0.6B, {INT4} against llama.cpp Q4_0",
                Figure(f"qcore {RANDOM}", f"{RANDOM} {INT4}", "decode"),
                Figure(f"{LLAMA} {RANDOM}", f"{RANDOM} q4_0", "decode"),
                1.2,
            ),
        ),
    ),
    _exported("", ("gguf-q4_0-head8",)),
    _exported(RANDOM, tuple(EXPORTED)),
    Stage(
        "the default model through transformers' generate",
        4,
        (
            _generating("fp32"),
            _generating(INT4),
            *(_generating(recipe, needs) for recipe, (_, _, needs) in LIBRARIES.items()),
        ),
        (
            Ratio(
                "generate_int4_vs_fp32",
                f"decode in generate, {INT4} against fp32",
                _generated(INT4),
                _generated("fp32"),
                4.5,
            ),
            *(
                Ratio(
                    f"generate_int4_vs_{short}",
                    f"decode in generate, {INT4} against {title}",
                    _generated(INT4),
                    _generated(recipe),
                    1.0,
                )
                for recipe, (short, title, _) in LIBRARIES.items()
            ),
        ),
    ),
    Stage(
        "one product with a 4096 x 11008 matrix",
        5,
        (Process("gemv", "gemv", ("4096x11008",)),),
        tuple(
            Ratio(
                f"gemv_{name}_bandwidth_share",
                f"GEMV at 4096x11008, {words}, share of the read bandwidth",
                Figure("gemv", "4096x11008", figure, "bytes/s"),
                Figure("gemv", "4096x11008", "read", "bytes/s"),
                0.8,
            )
            for name, words, figure in (
                ("int4", "int4-g32", "int4"),
                ("int4_a8", "int4-g32 with 8-bit activations", "int4 8-bit activations"),
                ("int8", "int8", "int8"),
            )
        ),
    ),
)


def ratio_names() -> list[str]:
    """Return all stages, in the order of the table."""
    return [ratio.name for stage in STAGES for ratio in stage.ratios]


def chosen(patterns: Sequence[str]) -> list[Stage]:
    """Return the stages with only the ratios that match one of `patterns` (names with `*`; empty: all) and
    the processes and items that these need. Raise `InputError` for a pattern without a match."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in ratio_names()):
            raise InputError(f"No ratio is called {pattern!r}. There are: {', '.join(ratio_names())}.")
    stages = []
    for stage in STAGES:
        ratios = tuple(
            ratio
            for ratio in stage.ratios
            if not patterns or any(fnmatchcase(ratio.name, each) for each in patterns)
        )
        used = {(figure.process, figure.item) for ratio in ratios for figure in (ratio.ours, ratio.theirs)}
        processes = []
        for process in stage.processes:
            if items := tuple(item for item in process.items if (process.name, item) in used):
                processes.append(Process(process.name, process.module, items, process.needs))
        if ratios:
            stages.append(Stage(stage.title, stage.rounds, tuple(processes), ratios))
    return stages


def turns(stage: Stage, round_number: int) -> list[tuple[str, str]]:
    """Return (process, item) in the order of this round: forward, and backward in the next round."""
    order = [(process.name, item) for process in stage.processes for item in process.items]
    return order if round_number % 2 == 0 else order[::-1]


def missing(stages: Sequence[Stage], installed: Sequence[str]) -> list[str]:
    """Return the packages that `stages` need and that are not among `installed`."""
    needed = dict.fromkeys(
        package for stage in stages for process in stage.processes for package in process.needs
    )
    return [package for package in needed if package not in installed]


def check_installed(stages: Sequence[Stage], installed: Sequence[str]) -> None:
    """Raise `InputError` that names the missing packages and how to install them."""
    if absent := missing(stages, installed):
        raise InputError(
            f"Not installed: {', '.join(absent)}. Install all peers with "
            "`pip install -r benchmarks/requirements.txt`, or measure only a part with "
            "--only, such as --only 'gemv_*'."
        )

"""The plan of `quality.py`: methods, the bars on size and loss, and the comparisons drawn from the rows.

A method is a row of the table: a program's way to quantize the linear layers in the blocks, from the same
weights as all others. All methods that calibrate read the same windows. Two bars compare our smallest losses
with the well-known bitsandbytes nf4; beside every peer stands our best recipe of its size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qcore.base.errors import InputError
from qcore.recipes import parse

MODEL = "smollm2-135m-dithered"
TOKENS, WINDOW = 8192, 512
BASELINE = "fp32"
NEAR = 0.1  # largest difference in bits per weight of two sizes that count as equal
SECONDS = {"gptq": 180, "hqq": 30}  # on two cores, for recipes of int4 with groups of 64


@dataclass(frozen=True)
class Method:
    """A row called `name`: `quantizers/<module>.py` quantizes to `item`. `needs` are packages; `own` marks
    qcore's recipes, `learned` those that train; `about` describes the program's settings to readers."""

    name: str
    module: str
    item: str
    needs: tuple[str, ...] = ()
    own: bool = False
    learned: bool = False
    about: str = ""


OWN = (
    "int8",
    "int4-g64",
    "nf4-g64",
    "int4-g64-hqq",
    "int4-g64-gptq",
    "int4-g128-awq",
    "kmeans4-hessian",
    "rot-int4-g64-gptq",
    "kmeans4-g32-dq-gptq",
    "kmeans4-g24-dq-gptq",
    "kmeans4-g16-dq-gptq",
    "auto-4.6bpw-gptq",
    "auto-5bpw-gptq",
    "auto-5.5bpw-gptq",
    "int4-g64-signround",
    "int3-g64-signround",
    "kmeans4-g24-dq-distilled",
    "int3-g64-distilled",
)
"""qcore's recipes compared by default: each method once, and a recipe near the size of every peer."""

_LLAMA = ("llama-cpp-python", "gguf")
PEERS = (
    Method(
        "bitsandbytes nf4", "own", "bnb-nf4", ("bitsandbytes",), about="blocks of 64, a float32 maximum each"
    ),
    Method(
        "quanto int4",
        "own",
        "quanto-int4",
        ("optimum-quanto",),
        about="groups of 96, 64 or 32, as the library chooses",
    ),
    *(
        Method(
            f"llama.cpp {kind}",
            "llamacpp",
            f"{kind} with imatrix",
            _LLAMA,
            about="with an importance matrix of the calibration text",
        )
        for kind in ("Q4_0", "Q4_1", "IQ4_XS", "Q4_K_M")
    ),
    *(
        Method(f"llama.cpp {kind} without imatrix", "llamacpp", kind, _LLAMA, about="without calibration")
        for kind in ("Q4_0", "Q4_1", "IQ4_XS", "Q4_K_M")
    ),
    Method(
        "HQQ int4-g64",
        "hqq",
        "4 64",
        ("hqq",),
        about="the library's defaults, scales and zero points in 16 bits",
    ),
    Method(
        "GPTQModel int4-g64",
        "gptqmodel",
        "4 64",
        ("gptqmodel",),
        about="the library's defaults but for the group size",
    ),
    Method(
        "AutoRound int4-g64 light",
        "autoround",
        "4 64 50",
        ("auto-round",),
        about="50 steps per block, its authors' light recipe",
    ),
    Method(
        "AutoRound int4-g64",
        "autoround",
        "4 64 200",
        ("auto-round",),
        about="200 steps per block, its default",
    ),
)


@dataclass(frozen=True)
class Bar:
    """Our smallest mean KL at no more than `bits` (without training, or with it) against that of `peer`: at
    most `share` of it."""

    name: str
    learned: bool
    bits: float
    peer: str
    share: float


BARS = (
    Bar("without training, up to 4.35 bits", False, 4.35, "bitsandbytes nf4", 0.35),
    Bar("with learned rounding, up to 4.35 bits", True, 4.35, "bitsandbytes nf4", 0.28),
    Bar("with learned rounding, up to 3.35 bits", True, 3.35, "bitsandbytes nf4", 1.0),
)


def own_methods(recipes: Sequence[str]) -> tuple[list[Method], dict[str, str]]:
    """Return the baseline and `recipes` as methods, and {name: reason} for recipes of the default list that
    this version cannot parse.

    Raise `InputError` for an unknown recipe that was requested by name.
    """
    methods, unknown = [], {}
    for name in (BASELINE, *recipes):
        try:
            recipe = parse(name)
        except InputError as error:
            if name not in OWN:
                raise
            unknown[name] = str(error)
            continue
        if recipe.name not in [method.name for method in methods]:
            methods.append(
                Method(
                    recipe.name,
                    "own",
                    recipe.name,
                    own=True,
                    learned=recipe.method in ("signround", "distilled"),
                )
            )
    return methods, unknown


def chosen(methods: Sequence[Method], patterns: Sequence[str]) -> list[Method]:
    """Return the baseline and the methods whose names match one of `patterns` (`*` for any letters; empty:
    all). Raise `InputError` for a pattern without a match."""
    for pattern in patterns:
        if not any(fnmatchcase(method.name, pattern) for method in methods):
            raise InputError(
                f"No row is called {pattern!r}. There are: {', '.join(method.name for method in methods)}."
            )
    return [
        method
        for method in methods
        if not patterns
        or method.name == BASELINE
        or any(fnmatchcase(method.name, pattern) for pattern in patterns)
    ]


def left_out(methods: Sequence[Method], installed: Sequence[str]) -> dict[str, str]:
    """Return {name: reason} of the methods whose packages are not among `installed`."""
    reasons = {}
    for method in methods:
        if absent := [package for package in method.needs if package not in installed]:
            reasons[method.name] = (
                f"{', '.join(absent)} not installed: pip install -r benchmarks/requirements-quality.txt"
            )
    return reasons


def comparisons(rows: Sequence[dict], methods: Sequence[Method]) -> list[dict]:
    """Return the comparisons drawn from the rows: one entry per bar, per peer, and per time limit.

    {"kind", "name", "ours", "theirs", "value", "bar", "holds"}; `value` is our mean KL over theirs, or
    seconds. `holds` is None if a side was not measured; then `why` names what is missing.
    """
    by_name = {row["name"]: row for row in rows}
    own = [
        (method, by_name[method.name])
        for method in methods
        if method.own and method.name in by_name and method.name != BASELINE
    ]
    peers = [method for method in methods if not method.own]
    entries = [_bar(bar, own, by_name) for bar in BARS]
    entries += [
        _beside(by_name[peer.name], [row for _, row in own]) for peer in peers if peer.name in by_name
    ]
    return entries + [_limit(row) for method, row in own if _limited(method.name)]


def _bar(bar: Bar, own, by_name) -> dict:
    entry = {"kind": "bar", "name": bar.name, "bar": bar.share}
    fit = [row for method, row in own if method.learned == bar.learned and row["bits_per_weight"] <= bar.bits]
    if bar.peer not in by_name or not fit:
        return entry | _missing(bar.peer if fit else "a recipe of ours that fits")
    return entry | _ratio(min(fit, key=_loss), by_name[bar.peer], bar.share)


def _beside(peer: dict, own: list[dict]) -> dict:
    entry = {"kind": "peer", "name": f"beside {peer['name']}, within {NEAR} bits", "bar": 1.0}
    fit = [row for row in own if abs(row["bits_per_weight"] - peer["bits_per_weight"]) <= NEAR]
    return entry | (
        _ratio(min(fit, key=_loss), peer, 1.0) if fit else _missing("a recipe of ours of that size")
    )


def _limited(name: str) -> str | None:
    method = parse(name).method
    return method if name == f"int4-g64-{method}" and method in SECONDS else None


def _limit(row: dict) -> dict:
    limit, seconds = SECONDS[_limited(row["name"])], row["seconds"]
    return {
        "kind": "seconds",
        "name": f"seconds for {row['name']}",
        "ours": row["name"],
        "theirs": None,
        "value": seconds,
        "bar": limit,
        "holds": seconds < limit,
    }


def _ratio(ours: dict, theirs: dict, share: float) -> dict:
    value = ours["kl_mean"] / theirs["kl_mean"] if theirs["kl_mean"] else float("inf")
    return {
        "ours": ours["name"],
        "theirs": theirs["name"],
        "value": value,
        "holds": value < 1 if share == 1 else value <= share,
    }


def _missing(what: str) -> dict:
    return {"ours": None, "theirs": None, "value": None, "holds": None, "why": f"{what} was not measured"}


def _loss(row: dict) -> float:
    return row["kl_mean"]

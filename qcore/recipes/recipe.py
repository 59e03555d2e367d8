"""A recipe says how a model is to be stored and computed. It is frozen, has a short name, and turns into JSON
and back.

Names are read from left to right: what the codes are, then refinements in any order.

    fp32 bf16 fp16                    floating point, the baseline and its halves
    int8                              uniform, one scale a channel, symmetric
    int4-g64 int4-g32-sym int3 int2   uniform, one scale a group of inputs, asymmetric unless -sym
    nf4-g64 fp4-g64 kmeans4           a table of 16 values, fixed or learned
    …-dq                              the scales are quantized again
    …-dynamic                         activations are quantized too, to 8 bits for each token, while the model runs
    …-a32 …-a16 …-a8                  how a weight-only kernel reads activations: exactly, in 16 bits (the default), in 8 bits
    …-head8                           the output head and the embedding in int8 as well
    …-hqq                             codes chosen by half-quadratic optimisation, without data
    …-gptq …-awq …-signround          codes chosen with calibration text: second-order updates, scaled channels, learned rounding
    kmeans4-hessian                   the table is learned where the inputs are large
    rot-…                             the residual stream is rotated first, which spreads outliers over all channels
    auto-4.25bpw auto-90mb auto-0.1kl each layer in the format that it needs: the least predicted loss for so many bits a weight or
                                      bytes, or the fewest bytes for so much loss; -dq and the methods for single layers go with it
    bnb-nf4 torchao-int8 …            the same idea as another library implements it

A row of a comparison can also be `saved:FOLDER`: what was made from the same model before, quantized,
trained, pruned or distilled.
"""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.registry import unknown
from qcore.formats import budget
from qcore.formats.budget import Budget
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform

DEFAULT_GROUP = 64
ACTIVATIONS = ("fp32", "int16", "int8-block", "int8")
CALIBRATED = ("gptq", "awq", "kmeans-hessian", "signround", "distilled")
"""Methods that need calibration text."""
PREPARATIONS = ("none", "rotation")
SAVED = "saved:"
_ACTIVATION_OPTIONS = {"a32": "fp32", "a16": "int16", "a8": "int8-block", "dynamic": "int8"}


@dataclass(frozen=True)
class Float:
    """Plain floating point: "fp32", "bf16" or "fp16"."""

    dtype: str

    def __post_init__(self):
        if self.dtype not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"dtype is {self.dtype!r}, but it must be fp32, bf16 or fp16")


@dataclass(frozen=True)
class Engine:
    """Another library's quantizer: `backend` names the file in `qcore/engines/` and `variant` the form it is
    asked for."""

    backend: str
    variant: str


@dataclass(frozen=True)
class Saved:
    """Weights that are not made now but lie in `folder`, a model that was made from the one at hand."""

    folder: str


Weights = Float | Uniform | Codebook | Budget | Engine | Saved


@dataclass(frozen=True)
class Modules:
    """Which modules a recipe touches besides the linear layers inside the blocks.

    `head` and `embeddings` are "keep" (as loaded), "int8" (one scale a channel) or "same" (as the other
    weights); a tied pair follows `head`. `skip` holds patterns: module names, whole or in part, matched on
    their dotted segments with `*` for any one segment: "layers.0" skips everything in block 0 and not block
    10; "*.down_proj" or "down_proj" every down projection.
    """

    head: str = "keep"
    embeddings: str = "keep"
    skip: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "skip", tuple(self.skip))
        for name in ("head", "embeddings"):
            if getattr(self, name) not in ("keep", "int8", "same"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it must be keep, int8 or same")


@dataclass(frozen=True)
class Recipe:
    """`weights` says what is stored, `method` how codes are chosen ("rtn", "kmeans", "hqq", or one of
    `CALIBRATED`; "none" for floats, engines and saved models). `prepare` is done to the whole model before:
    "rotation", or "none".

    `activations` is what a layer multiplies with: "fp32" (exact), "int16" (blocks of 32 inputs with a scale
    each, an error of some 1e-5 that no 8-bit weight notices; where there is no fast kernel, exact),
    "int8-block" (the same in 8 bits, some 5e-3) or "int8" (one scale a token: the dynamic recipes).
    """

    name: str
    weights: Weights
    method: str = "none"
    activations: str = "fp32"
    modules: Modules = field(default_factory=Modules)
    prepare: str = "none"

    def __post_init__(self):
        if self.prepare not in PREPARATIONS:
            raise ValueError(f"prepare is {self.prepare!r}, but it must be one of {', '.join(PREPARATIONS)}")
        if self.activations not in ACTIVATIONS:
            raise ValueError(
                f"activations is {self.activations!r}, but it must be one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def quantizes(self) -> bool:
        """False for the floating-point recipes, and for saved models, which are taken as they are."""
        return not isinstance(self.weights, Float | Saved)

    @property
    def calibrated(self) -> bool:
        """Whether codes are chosen with the help of a calibration text."""
        return self.method in CALIBRATED or isinstance(self.weights, Budget)

    def to_dict(self) -> dict:
        """A JSON-ready dictionary; `from_dict` is its inverse."""
        record = asdict(self)
        weights = self.weights.to_dict() if isinstance(self.weights, Budget) else record["weights"]
        record["weights"] = {"type": type(self.weights).__name__.lower(), **weights}
        record["modules"]["skip"] = list(self.modules.skip)
        return record

    @classmethod
    def from_dict(cls, record: dict) -> "Recipe":
        """Rebuild a recipe from `to_dict`. Raises `InputError` if a field is missing, unknown or out of
        range."""
        try:
            weights = dict(record["weights"])
            kind = _TYPES[weights.pop("type")]
            if kind is Engine and "library" in weights:  # as it was called in earlier records
                weights["backend"] = weights.pop("library")
            return cls(
                **{**record, "weights": kind(**weights), "modules": Modules(**record.get("modules", {}))}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This recipe record cannot be read: {error}.") from error

    def with_modules(self, **choices) -> "Recipe":
        """The same recipe with other choices of modules, such as `skip=("layers.0",)`."""
        return replace(self, modules=replace(self.modules, **choices))


_TYPES = {kind.__name__.lower(): kind for kind in (Float, Uniform, Codebook, Budget, Engine, Saved)}

ENGINES = {
    "bnb-int8": (
        Engine("bitsandbytes", "int8"),
        "bitsandbytes LLM.int8(): weights per channel, activations 8-bit, outliers in floating point",
    ),
    "bnb-nf4": (Engine("bitsandbytes", "nf4"), "bitsandbytes NF4, blocks of 64"),
    "bnb-nf4-dq": (
        Engine("bitsandbytes", "nf4-dq"),
        "bitsandbytes NF4 with double quantization, as in QLoRA",
    ),
    "bnb-fp4": (Engine("bitsandbytes", "fp4"), "bitsandbytes FP4, blocks of 64"),
    "bnb-fp4-dq": (Engine("bitsandbytes", "fp4-dq"), "bitsandbytes FP4 with double quantization"),
    "torchao-int8": (Engine("torchao", "int8"), "torchao Int8WeightOnly: weights per channel"),
    "torchao-int8-dynamic": (Engine("torchao", "int8-dynamic"), "torchao Int8DynamicActivationInt8Weight"),
    "torch-dynamic-int8": (
        Engine("torch_dynamic", "int8"),
        "torch.ao quantize_dynamic: one scale a tensor, the head included",
    ),
    "quanto-int8": (Engine("quanto", "int8"), "optimum-quanto int8 weights, per channel"),
    "quanto-int4": (Engine("quanto", "int4"), "optimum-quanto int4 weights, groups of 128"),
    "onnx-fp32": (
        Engine("onnxruntime", "fp32"),
        "ONNX Runtime on the graph that PyTorch exports, nothing quantized",
    ),
    "onnx-int8": (
        Engine("onnxruntime", "int8"),
        "ONNX Runtime quantize_dynamic: one scale a matrix, activations for each call",
    ),
    "onnx-int4": (Engine("onnxruntime", "int4"), "ONNX Runtime MatMulNBits with the codes of int4-g64"),
}
BASES = {
    "fp32": "32-bit floating point, the baseline",
    "bf16": "16-bit brain float: half the bytes, the same range, 8 bits of precision",
    "fp16": "16-bit float: half the bytes, 11 bits of precision, largest value 65504",
    "int8": "8-bit integers, one scale a channel",
    "int4": "4-bit integers, a scale and a zero point for each group of inputs",
    "int3": "3-bit integers, a scale and a zero point for each group of inputs",
    "int2": "2-bit integers, a scale and a zero point for each group of inputs",
    "nf4": "a table of 16 values with equal mass under a normal distribution, a scale for each group of inputs",
    "fp4": "a 4-bit float as a table of 16 values, a scale for each group of inputs",
    "kmeans4": "a table of 16 values learned for each channel by k-means",
    "auto": "each layer in the format that it needs, by how much the model's predictions mind, from calibration text",
}
COMMON = (
    "fp32",
    "bf16",
    "fp16",
    "int8",
    "int8-g64",
    "int8-dynamic",
    "int4-g32",
    "int4-g64",
    "int4-g128",
    "int4-g64-sym",
    "int4-g64-dq",
    "int3",
    "int2",
    "nf4-g64",
    "nf4-g64-dq",
    "fp4-g64",
    "fp4-g64-dq",
    "kmeans4",
    "kmeans4-g64",
    "int4-g32-head8",
    "int4-g64-hqq",
    "int3-g64-hqq",
)
WITH_TEXT = (
    "int4-g64-gptq",
    "int3-g64-gptq",
    "nf4-g32-dq-gptq",
    "kmeans4-g32-dq-gptq",
    "kmeans4-hessian",
    "int4-g128-awq",
    "rot-int4-g64-gptq",
    "int4-g64-signround",
    "auto-4.25bpw",
    "auto-4.25bpw-gptq",
)
"""Recipes that read calibration text, which `convert.quantize` must be given."""


def names() -> list[str]:
    """The recipes worth offering in a list: own ones first, then other libraries'. `parse` knows more (any
    group size)."""
    return [*COMMON, *WITH_TEXT, *ENGINES]


def describe(recipe: Recipe) -> str:
    """One line a newcomer understands."""
    if recipe.name in ENGINES:
        return ENGINES[recipe.name][1]
    if isinstance(recipe.weights, Saved):
        return f"made from this model before, in {recipe.weights.folder}"
    rotated, base, options = _split(recipe.name)
    text = BASES[base]
    for option in options:
        text += "; " + next(explain(option) for pattern, explain in _EXPLAIN if re.fullmatch(pattern, option))
    return text + ("; the residual stream rotated first" if rotated else "")


_EXPLAIN = (
    (budget.PATTERN, lambda option: "at most " + Budget(*budget.read(option)).words),
    (r"g\d+", lambda option: f"groups of {option[1:]} inputs"),
    (r"sym", lambda option: "symmetric, so no zero point is stored"),
    (r"asym", lambda option: "with a zero point"),
    (r"dq", lambda option: "scales in 8 bits"),
    (r"dynamic", lambda option: "activations in 8 bits as well"),
    (r"a(8|16|32)", lambda option: f"activations read in {option[1:]} bits by the kernel"),
    (r"head8", lambda option: "head and embedding in int8"),
    (r"hqq", lambda option: "codes by half-quadratic optimisation, without data"),
    (r"gptq", lambda option: "codes by GPTQ and coordinate descent, from calibration text"),
    (r"awq", lambda option: "channels scaled by their activations (AWQ), from calibration text"),
    (r"hessian", lambda option: "where the inputs in calibration text are large"),
    (
        r"signround",
        lambda option: (
            "rounding learned block by block (SignRound, as in AutoRound), from calibration text; the slowest"
        ),
    ),
    (
        r"distilled",
        lambda option: (
            "after GPTQ, rounding learned for all blocks together from the unquantized model's predictions"
        ),
    ),
)
_METHODS = {
    "hqq": "hqq",
    "gptq": "gptq",
    "awq": "awq",
    "hessian": "kmeans-hessian",
    "signround": "signround",
    "distilled": "distilled",
}


def _split(name: str) -> tuple[bool, str, list[str]]:
    """Whether `name` begins with "rot-", its base, and its options."""
    base, *options = name.removeprefix("rot-").split("-")
    return name.startswith("rot-"), base, options


def parse(name: str) -> Recipe:
    """The recipe called `name`; "int4" is short for "int4-g64".

    Raises `InputError` with near names for an unknown one, and for options that contradict each other.
    """
    name = name.strip().lower()
    if name in ENGINES:
        return Recipe(name, ENGINES[name][0])
    rotated, base, options = _split(name)
    if base not in BASES or not all(
        any(re.fullmatch(pattern, option) for pattern, _ in _EXPLAIN) for option in options
    ):
        raise unknown("recipe", name, names())
    if len({re.sub(r"\d+|^a(?=sym)", "", option) for option in options}) < len(options):
        raise InputError(f"Recipe {name!r} gives the same option twice.")
    try:
        return _build(name, rotated, base, options)
    except ValueError as error:
        raise InputError(f"Recipe {name!r} cannot be built: {error}.") from error


def parse_row(name: str) -> Recipe:
    """What a row of a comparison can be: a recipe by its name, or "saved:FOLDER", which the last part of its
    path names. Raises `InputError` as `parse` does, and for a path without a name."""
    name = name.strip()
    if not name.startswith(SAVED):
        return parse(name)
    folder = name.removeprefix(SAVED)
    last = folder and Path(folder).expanduser().absolute().name
    if not last:
        raise InputError(
            f"{name!r} names no folder; write {SAVED} and the folder that quantize, qat, prune, distill or export made."
        )
    return Recipe(SAVED + last, Saved(folder))


def _build(name: str, rotated: bool, base: str, options: list[str]) -> Recipe:
    if base in ("fp32", "bf16", "fp16"):
        if options or rotated:
            raise ValueError(f"{base} takes no options")
        return Recipe(name, Float(base))
    amounts = [found for option in options if (found := budget.read(option))]
    size = next((int(option[1:]) for option in options if re.fullmatch(r"g\d+", option)), None)
    if size is None and base not in ("int8", "kmeans4", "auto"):
        size = DEFAULT_GROUP
    if base == "auto":
        weights = _budget(amounts, options, size)
    elif amounts:
        raise ValueError(
            f"a budget goes with auto, as in auto-{amounts[0][0]:g}{amounts[0][1]}, and not with {base}"
        )
    elif base.startswith("int"):
        symmetric = "sym" in options or (base == "int8" and "asym" not in options)
        weights = Uniform(int(base[3:]), size, symmetric, double_quant="dq" in options)
    elif "sym" in options or "asym" in options:
        raise ValueError(f"{base} is a table of values, so -sym and -asym mean nothing")
    else:
        weights = Codebook(base, size, double_quant="dq" in options)
    read = [_ACTIVATION_OPTIONS[option] for option in options if option in _ACTIVATION_OPTIONS]
    if len(read) > 1:
        raise ValueError("-dynamic, -a8, -a16 and -a32 exclude each other")
    return Recipe(
        name,
        weights,
        method=_method(base, options),
        activations=read[0] if read else "int16",
        modules=Modules(head="int8", embeddings="int8") if "head8" in options else Modules(),
        prepare="rotation" if rotated else "none",
    )


def _budget(amounts: list[tuple[float, str]], options: list[str], size: int | None) -> Budget:
    if len(amounts) != 1:
        raise ValueError(
            "auto needs one budget: bits a weight, MB or nats, as in auto-4.25bpw, auto-90mb or auto-0.1kl"
        )
    if size is not None or "sym" in options or "asym" in options:
        raise ValueError("auto chooses the group sizes itself, so -g, -sym and -asym mean nothing")
    candidates = budget.with_double_quant() if "dq" in options else budget.CANDIDATES
    return Budget(*amounts[0], candidates)


def _method(base: str, options: list[str]) -> str:
    chosen = [option for option in options if option in _METHODS]
    if len(chosen) > 1:
        raise ValueError(f"-{chosen[0]} and -{chosen[1]} exclude each other")
    if not chosen:
        return "kmeans" if base == "kmeans4" else "rtn"
    option = chosen[0]
    if option == "hessian" and base != "kmeans4":
        raise ValueError(
            "-hessian weights the learning of a table, so it goes with kmeans4; for other formats take -gptq"
        )
    if option == "hqq" and not base.startswith(("int", "auto")):
        raise ValueError("-hqq works on uniform grids, such as int4-g64-hqq")
    if option == "awq" and base == "kmeans4":
        raise ValueError("-awq works on fixed grids, such as int4-g128-awq or nf4-g64-awq")
    return _METHODS[option]

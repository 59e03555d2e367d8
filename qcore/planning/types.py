"""What a plan returns: plain data, so that a page can hold it without torch."""

from dataclasses import asdict, dataclass, field

from qcore.planning.recommend import Recommendation

RECIPES = ("fp32", "bf16", "int8", "int4-g32", "int4-g64", "int4-g64-gptq", "nf4-g64", "int3")
CONTEXT, LARGEST_CONTEXT = 2048, 100_000_000
AS_IT_IS = "as it is"
PROBED, DISTURBED = "probed", "probed beside other work"


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One recipe with one format of the KV cache; all sizes in bytes. `run_bytes` is the peak while it runs,
    `parts` what that is made of, `load_bytes` and `stream_bytes` the peaks of quantizing in memory and
    streamed (None: it cannot be streamed), `card_bytes` what it takes on an accelerator. `fits` compares
    `run_bytes` with the plan's memory. `sources` maps "stored", "peak", "decode", "prefill" and "quality" to
    where the figure is from."""

    recipe: str
    kv: str
    stored_bytes: int
    bits_per_weight: float | None
    kv_bytes: int
    run_bytes: int
    load_bytes: int
    stream_bytes: int | None
    card_bytes: int
    parts: dict[str, int]
    fits: bool
    decode_tok_s: float | None = None
    prefill_tok_s: float | None = None
    limit_tok_s: float | None = None
    kl: float | None = None
    perplexity_ratio: float | None = None
    sources: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`parameters` counts logical weights; `checkpoint_bytes` are stored (on the hub: would be fetched). Rows
    are compared with `memory`, which `memory_is` describes. `machines` lists well-known accelerators with the
    recipes that fit on each."""

    model: str
    description: str
    parameters: int
    checkpoint_bytes: int
    dtypes: tuple[str, ...]
    cache_layout: str
    context: int
    users: int
    memory: int
    memory_is: str
    rows: tuple[PlanRow, ...]
    machines: tuple[dict, ...]
    warnings: tuple[str, ...]
    recommendation: Recommendation
    probed: dict | None

    def to_dict(self) -> dict:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory in bytes. `peak_stream_bytes` is None for a recipe that needs more than one tensor at a time.
    `fits` compares the larger of the loading and running peaks with `available_bytes`. `arithmetic` spells
    out the sum."""

    stored_bytes: int
    bits_per_weight: float | None
    peak_load_bytes: int
    peak_stream_bytes: int | None
    peak_run_bytes: int
    kv_bytes: int
    activation_bytes: int
    libraries_bytes: int
    available_bytes: int
    fits: bool
    arithmetic: str


@dataclass(frozen=True)
class Band:
    """Relative errors of one figure over `runs` predictions: the median magnitude, the largest, and how many
    were within `bar`."""

    figure: str
    runs: int
    median: float
    largest: float
    within: int
    bar: float

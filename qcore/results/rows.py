"""The row of one recipe: its keys, the keys of its record, and the display of each figure.

Tables, downloads, pages and plots take titles, units and directions from `FIGURES`. Rows are stored on disk
and in the database as JSON objects with these keys; rows of earlier versions may lack some.
"""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast


class RunRecord(TypedDict, total=False):
    """The conditions of a row, its raw measurements and how to repeat it. A failed row has the first eight
    keys."""

    model: str
    revision: str | None
    recipe: dict[str, Any]
    spec: dict[str, Any]
    run_id: str | None
    error_kind: str | None
    failed_while: str | None
    started_at: float | None
    finished_at: float
    qcore: str
    model_description: str
    source: str
    digest: str
    parameters: int
    compute_dtype: str
    threads: int
    environment: dict[str, Any]
    text: dict[str, Any]
    window: int
    stride: int
    seed: int
    device: str
    notes: list[str]
    command: str
    phase_seconds: dict[str, float]
    predicted: dict[str, Any]
    execution: list[str]
    kv: dict[str, Any]
    bytes_a_token: int
    tokens_scored: int
    throughput: dict[str, Any]
    evaluation: dict[str, Any]
    choices: dict[str, Any] | None
    prompts: dict[str, Any]
    questions: dict[str, Any]
    generations: list[dict[str, Any]]
    ledger: dict[str, Any]
    allocation: dict[str, Any] | None
    memory: dict[str, dict[str, int]]


class ResultRow(TypedDict):
    """The result of a comparison for one recipe. `status` is "ok", "failed" or "cancelled"; a row that is not
    "ok" has an `error` and None for its figures. Sizes are in bytes, speeds in tokens per second, times in
    seconds, `kl_mean` in nats per token (None without a baseline). `record` holds all conditions. `verdict`
    is added when rows are read, see `qcore.results.verdicts`."""

    recipe: str
    status: str
    error: str | None
    stored_bytes: int | None
    bits_per_weight: float | None
    coverage: float | None
    perplexity: float | None
    kl_mean: float | None
    top1_agreement: float | None
    prefill_tok_s: float | None
    decode_tok_s: float | None
    ttft_s: float | None
    peak_load_bytes: int | None
    peak_run_bytes: int | None
    quantize_s: float | None
    choices: dict[str, Any] | None
    record: RunRecord
    verdict: NotRequired[dict[str, Any] | None]


_SCALES = {"MB": 1e-6, "%": 100.0, "ms": 1000.0}


@dataclass(frozen=True)
class Figure:
    """One figure of a row.

    `unit` is used by tables of numbers and by plots, which show `decimals`; text uses a unit that fits the
    size, and `digits` significant digits. `smaller` tells whether smaller values are better; None: neither.
    `term` is the glossary entry that explains the figure.
    """

    key: str
    title: str
    unit: str
    decimals: int
    smaller: bool | None
    term: str | None = None
    digits: int = 3

    def of(self, row: ResultRow) -> float | None:
        """Return the figure in `row`; None if the row has none."""
        return cast(float | None, row.get(self.key))

    @property
    def scale(self) -> float:
        """Return the factor from the row's value to `unit`."""
        return _SCALES.get(self.unit, 1.0)

    @property
    def heading(self) -> str:
        """Return the title with its unit: "stored, MB"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def direction(self) -> str:
        """Return in words which values are better; "" if neither."""
        return {True: "smaller is better", False: "larger is better", None: ""}[self.smaller]


FIGURES = (
    Figure("stored_bytes", "stored", "MB", 1, True, "stored bytes"),
    Figure("bits_per_weight", "bits/weight", "", 2, True, "bits per weight"),
    Figure("coverage", "coverage", "%", 1, None, "coverage"),
    Figure("perplexity", "perplexity", "", 3, True, "perplexity", digits=4),
    Figure("kl_mean", "KL to fp32", "nats", 4, True, "KL divergence"),
    Figure("top1_agreement", "same top-1", "%", 1, False, "top-1 agreement"),
    Figure("prefill_tok_s", "prefill", "tok/s", 0, False, "prefill"),
    Figure("decode_tok_s", "decode", "tok/s", 1, False, "decode"),
    Figure("ttft_s", "TTFT", "ms", 0, True, "time to first token"),
    Figure("peak_load_bytes", "peak loading", "MB", 0, True, "peak memory"),
    Figure("peak_run_bytes", "peak running", "MB", 0, True, "peak memory"),
    Figure("quantize_s", "quantized in", "s", 1, True),
)
FIGURE = {figure.key: figure for figure in FIGURES}
ROW_KEYS = tuple(name for name in ResultRow.__annotations__ if name != "verdict")

"""The row of one recipe: its keys, in the order in which they are shown."""

from typing import Any, NotRequired, TypedDict


class ResultRow(TypedDict):
    """What a comparison found out about one recipe. `status` is "ok", "failed" or "cancelled"; a row that is
    not "ok" has an `error` and None for its figures. Sizes are in bytes, speeds in tokens per second, times in
    seconds, `kl_mean` in nats per token (None without a baseline). `record` holds all conditions. `verdict` is
    added when rows are read, see `qcore.results.verdicts`."""

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
    record: dict[str, Any]
    verdict: NotRequired[dict[str, Any] | None]


ROW_KEYS = tuple(name for name in ResultRow.__annotations__ if name != "verdict")
FIGURES = ROW_KEYS[ROW_KEYS.index("stored_bytes") : ROW_KEYS.index("choices")]

"""The row of one recipe: its keys, in the order in which they are shown."""

FIGURES = (
    "stored_bytes",
    "bits_per_weight",
    "coverage",
    "perplexity",
    "kl_mean",
    "top1_agreement",
    "prefill_tok_s",
    "decode_tok_s",
    "ttft_s",
    "peak_load_bytes",
    "peak_run_bytes",
    "quantize_s",
)
ROW_KEYS = ("recipe", "status", "error", *FIGURES, "choices", "record")

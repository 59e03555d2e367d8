"""How many tokens a model can read at once."""

from typing import Any


def positions(config: Any) -> int | None:
    """Return the number of tokens that a model of the transformers `config` can read at once; None if it
    names no limit: XLNet's is -1. MPT calls it max_seq_len."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    return limit if isinstance(limit, int) and limit > 0 else None

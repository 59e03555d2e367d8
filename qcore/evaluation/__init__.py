"""The quality lost to quantization: perplexity, divergence from the baseline, verdicts, task accuracy and
generated text.

The names below are imported on first use: verdicts need no torch, so a page that only shows them loads none.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "Divergence": "divergence",
    "Evaluation": "perplexity",
    "evaluate": "perplexity",
    "Reference": "reference",
}
__all__ = ["Divergence", "Evaluation", "Reference", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"qcore.evaluation.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'qcore.evaluation' has no attribute {name!r}")

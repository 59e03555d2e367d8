"""What quantization costs in quality: perplexity, divergence from the baseline, and what the model writes."""

from qcore.evaluate.divergence import Divergence
from qcore.evaluate.perplexity import Evaluation, evaluate
from qcore.evaluate.reference import Reference

__all__ = ["Divergence", "Evaluation", "Reference", "evaluate"]

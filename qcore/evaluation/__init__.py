"""What quantization costs in quality: perplexity, divergence from the baseline, and what the model writes."""

from qcore.evaluation.divergence import Divergence
from qcore.evaluation.perplexity import Evaluation, evaluate
from qcore.evaluation.reference import Reference

__all__ = ["Divergence", "Evaluation", "Reference", "evaluate"]

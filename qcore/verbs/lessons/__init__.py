"""What quantization does to one real tensor, small enough to be worked out while somebody moves a slider: the
ground of the page Learn.

    weights.py      a weight from a checkpoint's files, rounded by the engine's own methods: error, bits, and one group to look at
    choices.py      what a choice does to it: group size, clipping, an outlier, 8-bit activations
    learning.py     codes that are learned, weights that are left out, and what a teacher knows
    asking.py       the next token as a model and half of it see it

Nothing is computed another way here than where it is used: formats, methods, kernels, training and pruning
are the engine's.
"""

from qcore.verbs.lessons.asking import Predictions, predictions
from qcore.verbs.lessons.choices import (
    Activations,
    Clipped,
    Outlier,
    activations,
    clipped,
    group_sizes,
    outlier,
)
from qcore.verbs.lessons.learning import Learned, Pruned, Taught, learn, prune, taught
from qcore.verbs.lessons.weights import Group, Rounded, Sample, names, read, rounded

__all__ = [
    "Activations",
    "Clipped",
    "Group",
    "Learned",
    "Outlier",
    "Predictions",
    "Pruned",
    "Rounded",
    "Sample",
    "Taught",
    "activations",
    "clipped",
    "group_sizes",
    "learn",
    "names",
    "outlier",
    "predictions",
    "prune",
    "read",
    "rounded",
    "taught",
]

"""The computations of the page Learn: the effect of quantization on one real tensor, small enough to follow a
slider.

    weights.py      a weight of a checkpoint, rounded by the engine's methods: error, bits, one group
    choices.py      the effect of one choice: group size, clipping, an outlier, 8-bit activations
    learning.py     learned codes, pruned weights, and a teacher's distribution
    asking.py       the next token predicted by a model and by half of its layers

Formats, methods, kernels, training and pruning are the engine's own; nothing is reimplemented here.
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

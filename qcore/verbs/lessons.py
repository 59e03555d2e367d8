"""The computations of the page Learn: the effect of quantization on one real tensor, small enough to follow a
slider.

    lesson_weights.py      a weight of a checkpoint, rounded by the engine's methods: error, bits, one group
    lesson_choices.py      the effect of one choice: group size, clipping, an outlier, 8-bit activations
    lesson_learning.py     learned codes, pruned weights, and a teacher's distribution
    lesson_predictions.py  the next token predicted by a model and by half of its layers

Formats, methods, kernels, training and pruning are the engine's own; nothing is reimplemented here.
"""

from qcore.verbs.lesson_choices import (
    Activations,
    Clipped,
    Outlier,
    activations,
    clipped,
    group_sizes,
    outlier,
)
from qcore.verbs.lesson_learning import Learned, Pruned, Taught, learn, prune, taught
from qcore.verbs.lesson_predictions import Predictions, predictions
from qcore.verbs.lesson_weights import Group, Rounded, Sample, names, read, rounded

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

"""The computations of the page Learn: the effect of quantization on one real tensor, small enough to follow a
slider.

    lesson_weights.py      a weight of a checkpoint, rounded by the engine's methods: error, bits, one group
    lesson_choices.py      the effect of one choice: group size, clipping, an outlier, 8-bit activations
    lesson_learning.py     learned codes, pruned weights, and a teacher's distribution
    lesson_types.py        their results, which need no torch
    lesson_predictions.py  the next token predicted by a model and by half of its layers

Formats, methods, kernels, training and pruning are the engine's own; nothing is reimplemented here.
"""

from qcore.verbs.lesson_choices import activations, clipped, group_sizes, outlier
from qcore.verbs.lesson_learning import learn, prune, taught
from qcore.verbs.lesson_predictions import Predictions, predictions
from qcore.verbs.lesson_weights import Sample, names, places, read, rounded

__all__ = [
    "Predictions",
    "Sample",
    "activations",
    "clipped",
    "group_sizes",
    "learn",
    "names",
    "outlier",
    "places",
    "predictions",
    "prune",
    "read",
    "rounded",
    "taught",
]

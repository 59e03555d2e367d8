"""Logits by mlx-lm's own loader."""

import mlx.core as mx
import numpy as np
from job import run
from mlx_lm import load


def logits(path, ids):
    model, _ = load(path)
    return np.array(model(mx.array([ids]))[0].astype(mx.float32))


run(logits)

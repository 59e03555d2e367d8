"""Logits by llama.cpp, or its fork ik_llama.cpp, through the Python binding: one thread, keys and values in
float32."""

import numpy as np
from job import run

try:
    from llama_cpp import Llama
except ImportError:
    Llama = None

CONTEXT = 512


def logits(path, ids):
    """Of llama.cpp itself."""
    model = Llama(path, n_ctx=CONTEXT, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False)
    model.eval(ids)
    return model.scores[: len(ids)]


def logits_of_fork(path, ids):
    """Of the fork, whose binding has no function for all logits and keeps keys and values in 16 bits."""
    from ik_llama_cpp._internals import IkContext, IkModel, make_batch

    model = IkModel(path)
    context = IkContext(model, n_ctx=CONTEXT, n_threads=1, flash_attn=False)
    batch = make_batch(ids)
    for i in range(len(ids)):
        batch.logits[i] = 1
    if context.decode(batch):
        raise RuntimeError("llama_decode failed")
    return np.stack(
        [np.ctypeslib.as_array(context.get_logits(i), (model.n_vocab,)).copy() for i in range(len(ids))]
    )


run(logits_of_fork if Llama is None else logits)

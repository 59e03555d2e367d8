"""Logits by llama.cpp through its Python binding: one thread, keys and values in float32."""

from job import run
from llama_cpp import Llama

CONTEXT = 512


def logits(path, ids):
    model = Llama(path, n_ctx=CONTEXT, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False)
    model.eval(ids)
    return model.scores[: len(ids)]


run(logits)

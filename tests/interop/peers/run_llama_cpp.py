"""Logits by llama.cpp, or its fork ik_llama.cpp, through the Python binding."""

from job import run

try:
    from llama_cpp import Llama
except ImportError:
    from ik_llama_cpp import Llama


def logits(path, ids):
    model = Llama(path, n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    model.eval(ids)
    return model.scores[: len(ids)]


run(logits)

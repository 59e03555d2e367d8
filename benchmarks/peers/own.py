"""qcore's own decoder on folders that qcore saved, several recipes in one process. Activation modes are the
recipes' defaults."""

import time

import torch

from benchmarks.clock import timed
from benchmarks.plan import PROMPT, STEPS


def load(options: dict):
    """A decoder for each item; see the package."""
    from qcore.base.quiet import hush
    from qcore.library import safetensors
    from qcore.runtime import Decoder
    from qcore.verbs.record import execution

    hush()
    torch.set_num_threads(options["threads"])
    decoders, about = {}, {}
    for item in options["items"]:
        model, ledger, recipe = safetensors.load(options["files"][item])
        decoders[item] = Decoder(model, capacity=PROMPT + STEPS)
        about[item] = {
            "recipe": recipe.name,
            "stored_bytes": ledger.stored_bytes,
            "kernels": execution(model),
        }

    def measure(item: str) -> dict[str, float]:
        decoder = decoders[item]

        def call(function, tokens) -> tuple[float, int]:
            start = time.perf_counter()
            logits = function(tokens)
            return time.perf_counter() - start, int(logits.argmax())

        def read(tokens):
            decoder.reset()
            return call(decoder.prefill, tokens)

        return timed(read, lambda token: call(decoder.step, token), options["prompt"])

    return measure, about

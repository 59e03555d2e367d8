"""qcore's native step on a random model, for `contention.py`: tokens decoded in some seconds."""

import json
import time

import torch

from benchmarks.contention import PROMPT, RECIPE, SHAPE

LONGEST = 500  # tokens: the context stays short, so that the weights decide


def load(options: dict):
    """Build the model; see the package. An item is JSON: {"threads": number or null, "seconds": number}, null
    for the default."""
    from transformers import LlamaConfig

    from qcore import recipes, runtime
    from qcore.base.cpu import default_threads
    from qcore.base.quantile import quantile
    from qcore.planning import sample
    from qcore.runtime import Context
    from qcore.verbs.record import execution

    model = sample.build(LlamaConfig(**SHAPE), recipes.parse(RECIPE))
    assert runtime.reason_against(model) is None, "the native step does not run"

    @torch.no_grad()
    def decode(seconds: float) -> dict[str, float]:
        context, taken = Context(model), []
        token = context.append(torch.arange(PROMPT)[None]).argmax().reshape(1, 1)
        began, used = time.perf_counter(), time.process_time()
        while (before := time.perf_counter()) < began + seconds:
            if context.length > LONGEST:
                context = Context(model)
            token = context.append(token).argmax().reshape(1, 1)
            taken.append(time.perf_counter() - before)
        wall, ordered = time.perf_counter() - began, sorted(taken)
        return {
            "tok_s": len(taken) / wall,
            "p50_ms": 1000 * quantile(ordered, 0.5),
            "p99_ms": 1000 * quantile(ordered, 0.99),
            "threads": torch.get_num_threads(),
            "used": (time.process_time() - used) / wall,
        }

    def measure(item: str) -> dict[str, float]:
        wanted = json.loads(item)
        torch.set_num_threads(wanted["threads"] or default_threads())
        decode(0.3)
        return decode(wanted["seconds"])

    return measure, {"kernels": execution(model)}

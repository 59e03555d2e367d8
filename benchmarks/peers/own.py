"""qcore's own decode loop on folders and GGUF files that qcore wrote, several recipes in one process.
Activation precisions are the recipes' defaults."""

import time

import torch

from benchmarks.clock import timed


def load(options: dict):
    """Load a model for each item; see the package."""
    from qcore import library
    from qcore.base.quiet import silence
    from qcore.library import safetensors
    from qcore.runtime import Context
    from qcore.verbs.record import execution

    silence()
    torch.set_num_threads(options["threads"])
    models, about = {}, {}
    for item in options["items"]:
        path = options["files"][item]
        if path.endswith(".gguf"):
            loaded = library.load(library.resolve(path, as_stored=True))
            model, ledger, recipe = loaded.model, loaded.ledger, loaded.recipe
        else:
            model, ledger, recipe = safetensors.load(path)
        models[item] = model
        about[item] = {
            "recipe": recipe.name,
            "stored_bytes": ledger.stored_bytes,
            "kernels": execution(model),
        }

    @torch.no_grad()
    def measure(item: str) -> dict[str, float]:
        context = None

        def append(tokens: list[int]) -> tuple[float, int]:
            ids = torch.tensor([tokens])
            start = time.perf_counter()
            logits = context.append(ids)
            return time.perf_counter() - start, int(logits.argmax())

        def read(tokens: list[int]) -> tuple[float, int]:
            nonlocal context
            context = Context(models[item])
            return append(tokens)

        return timed(read, lambda token: append([token]), options["prompt"])

    return measure, about

"""Any recipe, qcore's or another library's, through transformers' own `model.generate`, common to all of
them.

A stopping criterion, called by `generate` after every token, takes the time of each token: the first one ends
the prefill.
"""

import time

import torch

from benchmarks.plan import GENERATED, MODEL


def load(options: dict):
    """Load the default model under the one recipe in "items"; see the package."""
    from transformers import StoppingCriteria

    from qcore import library, recipes
    from qcore.base.quiet import silence
    from qcore.library import safetensors
    from qcore.quantization import convert

    silence()
    torch.set_num_threads(options["threads"])
    (item,) = options["items"]
    recipe = recipes.parse(item)
    if item in options["files"]:
        model, ledger, _ = safetensors.load(options["files"][item])
    else:
        model = library.load(MODEL).model
        ledger = convert.quantize(model, recipe)
    times: list[float] = []

    class Clock(StoppingCriteria):
        """A stopping criterion that records the time of each token, and never stops."""

        def __call__(self, ids, scores, **_) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

    prompt = torch.tensor([options["prompt"]])
    fixed = {"max_new_tokens": GENERATED, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    @torch.no_grad()  # not inference_mode: some libraries' tensors fail under it
    def measure(_: str) -> dict[str, float]:
        times[:] = [time.perf_counter()]
        ids = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), stopping_criteria=[Clock()], **fixed
        )
        if ids.shape[1] != prompt.shape[1] + GENERATED or len(times) != GENERATED + 1:
            raise RuntimeError(f"generate wrote {ids.shape[1] - prompt.shape[1]} tokens, not {GENERATED}")
        return {
            "prefill": prompt.shape[1] / (times[1] - times[0]),
            "decode": (GENERATED - 1) / (times[-1] - times[1]),
        }

    return measure, {"recipe": recipe.name, "stored_bytes": ledger.stored_bytes}

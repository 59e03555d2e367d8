"""A random model of one family in several recipes, by qcore's decode loop: with the native step
("int8-head8") and without it ("int8-head8 modules")."""

import copy
import time
from pathlib import Path

import torch

from benchmarks.clock import timed
from benchmarks.zoo import config


def load(options: dict):
    """Make the models of "architecture" in "recipes", and write the model in float32 to "gguf" if that is
    not None; see the package."""
    from transformers import AutoModelForCausalLM

    from qcore import recipes, runtime
    from qcore.base.errors import InputError
    from qcore.base.quiet import silence
    from qcore.quantization import convert
    from qcore.runtime import Context
    from qcore.verbs.record import execution

    silence()
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    original = AutoModelForCausalLM.from_config(config(options["architecture"]), dtype=torch.float32).eval()
    about: dict = {
        "weights": sum(parameter.numel() for parameter in original.parameters()),
        "layers": original.config.num_hidden_layers,
        "kernels": {},
        "no_gguf": None,
    }
    if options["gguf"] is not None:
        from benchmarks import gguf_writer

        try:
            gguf_writer.write(original, Path(options["gguf"]))
        except (InputError, ValueError) as error:
            about["no_gguf"] = f"not written as GGUF: {error}"
    models = {}
    for last, name in [(name == options["recipes"][-1], name) for name in options["recipes"]]:
        model = original if last else copy.deepcopy(original)
        if last:
            del original
        convert.quantize(model, recipes.parse(name))
        runtime.attach(model)
        models[name] = model
        about["kernels"][name] = execution(model)

    @torch.no_grad()
    def measure(item: str) -> dict[str, float]:
        name, _, modules = item.partition(" ")
        model, context = models[name], None
        (runtime.detach if modules else runtime.attach)(model)
        # the first call after `attach` describes the model, as after loading: that is not part of a prefill
        Context(model).append(torch.tensor([options["prompt"]]))

        def append(tokens: list[int]) -> tuple[float, int]:
            ids = torch.tensor([tokens])
            start = time.perf_counter()
            logits = context.append(ids)
            return time.perf_counter() - start, int(logits.argmax())

        def read(tokens: list[int]) -> tuple[float, int]:
            nonlocal context
            context = Context(model)
            return append(tokens)

        return timed(read, lambda token: append([token]), options["prompt"], options["steps"])

    return measure, about

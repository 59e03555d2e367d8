"""onnxruntime-genai on an int4 model (blocks of 32, accuracy level 4: int8 products) from its own model
builder."""

import json
import time
from pathlib import Path

from benchmarks.clock import timed
from benchmarks.plan import PROMPT, STEPS


def load(options: dict):
    """Load a model for each item; see the package."""
    import onnxruntime_genai as genai

    models, configs = {}, {}
    threads = {"intra_op_num_threads": options["threads"], "inter_op_num_threads": 1}
    for item in options["items"]:
        folder = Path(options["files"][item])
        config = genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        models[item] = genai.Model(config)
        configs[item] = (
            json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
            | threads
        )
    state = {}

    def read(tokens) -> tuple[float, int]:
        parameters = genai.GeneratorParams(state["model"])
        parameters.set_search_options(
            max_length=PROMPT + STEPS + 2, min_length=PROMPT + STEPS + 2, do_sample=False
        )
        state["generator"] = genai.Generator(state["model"], parameters)
        start = time.perf_counter()
        state["generator"].append_tokens(tokens)
        taken = time.perf_counter() - start
        state["generator"].generate_next_token()  # takes a token from the present logits
        return taken, 0

    def write(_: int) -> tuple[float, int]:
        start = time.perf_counter()
        state["generator"].generate_next_token()  # runs the model on the last token, then takes the next
        return time.perf_counter() - start, 0

    def measure(item: str) -> dict[str, float]:
        state["model"] = models[item]
        return timed(read, write, options["prompt"])

    return measure, {"version": genai.__version__, "session_options": configs}

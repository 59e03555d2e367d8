"""qcore quantizes language models and measures the cost, in ten lines:

    import qcore

    model = qcore.load("smollm2-135m")
    small = qcore.quantize(model, "int4-g64")
    print(small.ledger.bits_per_weight, small.ledger.coverage)
    print(qcore.evaluate(small, tokens=2048).perplexity)
    print(qcore.measure(small).decode_tok_s)
    qcore.save(small, "smollm2-int4")
    for row in qcore.compare("smollm2-135m", ["fp32", "int8", "int4-g64"]):
        print(row["recipe"], row["stored_bytes"], row["perplexity"], row["decode_tok_s"])

The import is cheap: modules that need torch are imported on first use. It also lets transformers load saved
models: `AutoModelForCausalLM.from_pretrained("smollm2-int4")`, whichever of the two is imported first. And it
lowers torch's number of threads to the quota of a control group, see `qcore.base.cpu.limit_threads`.
"""

from importlib import import_module

from qcore.base.cpu import limit_threads
from qcore.base.imports import after_import

__version__ = "0.1.0"
_VERBS = (
    "load",
    "quantize",
    "evaluate",
    "judge",
    "ask",
    "measure",
    "compare",
    "save",
    "export",
    "plan",
    "audit",
    "qat",
    "prune",
    "distill",
    "push",
)
__all__ = [*_VERBS, "register", "QcoreError"]


def __getattr__(name: str):
    if name in _VERBS:
        return getattr(import_module("qcore.api"), name)
    if name == "register":
        return import_module("qcore.base.extensions").register
    if name == "QcoreError":
        return import_module("qcore.base.errors").QcoreError
    raise AttributeError(f"module 'qcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


after_import("torch", limit_threads)
after_import("transformers.quantizers", lambda: import_module("qcore.library.in_transformers").register())

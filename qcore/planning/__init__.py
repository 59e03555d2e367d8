"""Predict what a model costs on this machine before anything is downloaded, loaded or quantized.

stored.py      bytes of every tensor under a recipe, exact for qcore's formats
cache.py       bytes of the key-value cache: grouped queries, sliding windows, latent attention
fit.py         peak memory of loading, streaming and running, against what is free
machines.py    amounts of memory as text, and the memory of well-known accelerators
sample.py      a shortened copy of a model with random weights, for timing
probe.py       the speed probe: time the copy, keep the result
speed.py       prefill and decode speed of the whole model from a probe; recipes that are smaller but slower
quality.py     measured quality from earlier runs, or a typical figure with its source
recommend.py   the recipe that meets the constraints, the binding constraint, the runner-up
summary.py     `plan`: all of the above for one model
types.py       what they return, which needs no torch
hindsight.py   predictions made for a run, and their errors
"""

from importlib import import_module
from typing import TYPE_CHECKING

from qcore.planning.types import Estimate, Plan

if TYPE_CHECKING:
    from qcore.planning.fit import budget, check_device_fits, check_fits, estimate
    from qcore.planning.summary import plan

__all__ = ["Estimate", "Plan", "budget", "check_device_fits", "check_fits", "estimate", "plan"]


def __getattr__(name: str):
    """Import what needs torch on first use, so that pages can import `types`."""
    if name == "plan":
        return import_module("qcore.planning.summary").plan
    if name in __all__:
        return getattr(import_module("qcore.planning.fit"), name)
    raise AttributeError(f"module 'qcore.planning' has no attribute {name!r}")

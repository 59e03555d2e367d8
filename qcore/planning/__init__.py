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
hindsight.py   predictions made for a run, and their errors
"""

from qcore.planning.fit import Estimate, budget, check_device_fits, check_fits, estimate
from qcore.planning.summary import Plan, plan

__all__ = ["Estimate", "Plan", "budget", "check_device_fits", "check_fits", "estimate", "plan"]

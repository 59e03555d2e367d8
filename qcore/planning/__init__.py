"""What a model will cost here, before anything is downloaded, loaded or quantized.

stored.py      bytes of every tensor under a recipe, to the byte for own formats
cache.py       bytes of the key-value cache: grouped queries, sliding windows, latent attention
fit.py         does it fit: the peaks of loading, streaming and running, and the refusal with its arithmetic
machines.py    memory as people write it, and what well-known accelerators have
sample.py      a shortened copy of a model with random weights, to be timed
probe.py       the speed probe: the copy timed, and the results kept
speed.py       prefill and decode of the whole model from a probe; what would be smaller but slower
quality.py     measured quality from earlier runs, or a typical figure with its source
recommend.py   which recipe meets the needs, what binds, the runner-up
plan.py        all of it for one model: `plan`
hindsight.py   what was predicted for a run, and by how much it was wrong
"""

from qcore.planning.fit import Estimate, budget, check_fits, estimate
from qcore.planning.summary import Plan, plan

__all__ = ["Estimate", "Plan", "budget", "check_fits", "estimate", "plan"]

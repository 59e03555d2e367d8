"""What a model will cost here, before anything is downloaded, loaded or quantized.

fit.py      does it fit: the peaks of loading and running, and the refusal with its arithmetic
"""

from qcore.planning.fit import Estimate, budget, check_fits, estimate

__all__ = ["Estimate", "budget", "check_fits", "estimate"]

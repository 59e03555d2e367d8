"""Measurements beside other people's programs: `kernels.py` for single products, `speed.py` for whole
models."""

"""Benchmarks against other programs: `kernels.py` for single products, `speed.py` and `quality.py` for whole
models."""

"""Mutated files for each parser of untrusted input: `python -m tests.fuzz`, see `__main__.py`."""

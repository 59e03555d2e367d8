"""Pruning: weights, neurons, heads or layers that a model can do without.

scores.py      how much each weight matters, and which ones go
masks.py       unstructured pruning of a model: single weights become 0, floats or codes
structured.py  neurons, heads and whole layers are cut out: a smaller model of ordinary modules
ledger.py      what pruned tensors take when their zeros are not stored
"""

"""Pruning of weights, neurons, heads or layers.

scores.py      importance of each weight, and the choice of weights to prune
masks.py       unstructured pruning of a model: single weights become 0, as floats or codes
structured.py  removal of neurons, heads and whole layers: a smaller model of ordinary modules
ledger.py      the size of pruned tensors whose zeros are not stored
"""

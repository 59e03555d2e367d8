"""Sensitivity: the divergence caused by quantizing one layer alone, per layer and format, and the choice of
formats within a budget.

table.py         the table of sensitivities as JSON, and the rank correlation of the proxies
gradients.py     gradients of the predictions at the layers' outputs, one block at a time
rounding.py      a single layer's weights as a method rounds them
proxy.py         the loss predicted from gradients, for all layers and formats in one pass over the blocks
measured.py      the measured divergence with one layer quantized, per layer and format
allocation.py    the least loss within a budget, exactly
within.py        the same within a budget in its unit
choosing.py      from a recipe with a budget to a format per layer
store.py         tables on disk, keyed by everything that they depend on
"""

"""Which layer pays: how much the model's output minds each layer in each format, and the choice of formats
that follows from it.

table.py         what was found, as JSON, and how well the proxies rank
gradients.py     what the predictions mind, block after block from the last to the first
tail.py          from the last block's output to the logits
rounding.py      a layer's weights as a method rounds them
proxy.py         the loss that gradients predict, for all layers and formats in one walk
measured.py      the real thing: the divergence with one layer quantized, for each layer and format
allocation.py    the least loss within a budget, exactly
store.py         tables on disk, by all that they depend on
"""

from qcore.quantization.sensitivity.allocation import Choice, frontier, solve
from qcore.quantization.sensitivity.measured import measure
from qcore.quantization.sensitivity.proxy import predict
from qcore.quantization.sensitivity.table import Layer, Sensitivities, spearman

__all__ = ["Choice", "Layer", "Sensitivities", "frontier", "measure", "predict", "solve", "spearman"]

"""The layers of a model: which of them a recipe quantizes, the modules that take their place, and every
tensor they hold.

select.py     which parameters a recipe changes, and why the others stay
modules.py    quantized linear layers, embeddings and experts
stand_in.py   another forward for a module, and back
inventory.py  every tensor that a model holds, once
"""

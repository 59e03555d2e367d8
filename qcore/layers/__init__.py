"""The layers of a model: which ones a recipe quantizes, the modules that replace them, and all tensors they
hold.

select.py     which parameters a recipe changes, and why the others stay
modules.py    quantized linear layers, embeddings and experts
linear.py     which modules compute a linear layer
stand_in.py   temporary replacement of a module's forward
inventory.py  every tensor of a model, once
"""

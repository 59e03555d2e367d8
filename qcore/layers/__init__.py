"""The layers of a model: which ones a recipe quantizes, the modules that replace them, and all tensors they
hold.

select.py     which parameters a recipe changes, and why the others stay
modules.py    quantized linear layers, embeddings and experts
kinds.py      the kind of each parameter: what is kept by rule
text_part.py   the text model inside a model, and the towers beside it
linear.py     which modules compute a linear layer
experts.py    how fused experts are laid out
stand_in.py   temporary replacement of a module's forward
positions.py  how many tokens a model can read
inventory.py  every tensor of a model, once
"""

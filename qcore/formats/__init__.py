"""Formats: the meaning of the codes, scales and tables of a weight, and their packing.

kinds.py     `Format`, and the one table of its kinds
uniform.py   even grids; affine.py with a float minimum, signed.py with signed scales, k_quants.py with
             quantized scales in super-blocks; codebook.py tables of values, iq4_xs.py one with such scales
tensor.py    QuantizedTensor, a weight in a format; scales.py packing.py sparse.py its parts
budget.py    a budget in the place of a format
kv.py        formats of the key-value cache
"""

from qcore.formats import affine, codebook, iq4_xs, k_quants, signed, uniform  # noqa: F401  (each registers its kind)

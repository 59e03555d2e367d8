"""Quantized weights in the file formats of other projects, in both directions: equal codes, other bytes."""

"""How codes are executed: `linear` multiplies activations by a quantized weight, by the fastest correct way
this machine has."""

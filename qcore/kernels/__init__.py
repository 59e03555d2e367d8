"""Products with quantized weights: `dispatch.linear` picks the fastest correct kernel that this machine
has."""

"""Quantization of models larger than memory, one tensor at a time.

source.py       parameters straight from the checkpoint's files
layout.py       the tensors and shards of the output, to the byte
writer.py       writes and hashes a safetensors file while its tensors are computed
quantizing.py   `quantize`: a checkpoint to sharded safetensors
parameters.py   the quantized parameters one by one, for an export
"""

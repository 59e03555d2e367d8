"""Models larger than memory, quantized one tensor at a time.

source.py       parameters straight from the checkpoint's files
layout.py       what the output will consist of, to the byte
writer.py       a safetensors file that is written and hashed while its tensors are made
journal.py      the unfinished folder, and what is finished in it
quantizing.py   `quantize`: a checkpoint to sharded safetensors
"""

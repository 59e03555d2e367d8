"""llama.cpp's importance matrix, as its quantizer takes it through the C interface: an array of (name of the
tensor in the file, values, their number) that ends with an empty name.

llama-cpp-python does not include the tool that collects it; `qcore.quantization.calibration.importance` does.
"""

import ctypes

import torch


def as_c(values: dict[str, torch.Tensor], structure: type[ctypes.Structure]):
    """Convert `values` (name in the file: importance (K,)) to the array that the quantizer reads, of
    `structure`, the library's `llama_model_imatrix_data` (name, data, size). Keep it alive while C uses it.
    """
    array = (structure * (len(values) + 1))()  # the last one stays empty and marks the end
    for entry, (name, importances) in zip(array, values.items(), strict=False):
        entry.name = name.encode()
        entry.data = (ctypes.c_float * len(importances))(*importances.tolist())
        entry.size = len(importances)
    return array

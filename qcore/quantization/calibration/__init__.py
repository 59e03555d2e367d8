"""Calibration: choosing codes by what a model's layers are given when it reads a text.

text.py      which text, which windows of it, and that it is not the one the model is judged by
blocks.py    the model as a list of blocks that can be run one at a time
inputs.py    what the layers of a block are given
walk.py      block after block, each seeing the quantized ones before it
store.py     finished blocks on disk, for a run that was killed
"""

from qcore.quantization.calibration.store import unfinished
from qcore.quantization.calibration.text import Calibration, check_overlap, check_record, load_calibration
from qcore.quantization.calibration.walk import BlockWork, Finished, quantize_blocks

__all__ = [
    "BlockWork",
    "Calibration",
    "Finished",
    "check_overlap",
    "check_record",
    "load_calibration",
    "quantize_blocks",
    "unfinished",
]

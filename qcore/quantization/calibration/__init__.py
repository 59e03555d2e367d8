"""Calibration: the inputs of a model's layers on a text, by which methods choose codes.

text.py                the text and its windows, and the check against the evaluation text
blocks.py              the model as a list of blocks that run one at a time
calls.py               how the model calls each block
states.py              what passes from block to block
inputs.py              inputs of a block's layers and their second moments
activation_cache.py    outputs of the parts of a block that are already quantized
block_work.py          one block as a method sees it
walk.py                block after block, each reading the output of the quantized blocks before it
folds.py               scales per channel folded into the module that feeds a layer
tail.py                from the last block's output to the logits
store.py               finished blocks on disk, so that an interrupted run can resume
"""

from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.store import unfinished
from qcore.quantization.calibration.text import Calibration, check_overlap, check_record, load_calibration
from qcore.quantization.calibration.walk import Finished, quantize_blocks

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

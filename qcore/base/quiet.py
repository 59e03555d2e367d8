"""Keep other libraries' noise out of a person's sight, and nothing else.

Some libraries write messages that say nothing about the work at hand: that a CUDA extension does not load on
a machine without CUDA, that an interface will be renamed some day, once for every matrix product that its
input was cast. Each is silenced by its own text at the logger or the warning class it comes from; any other
message of the same library still appears, and errors are never touched. Progress bars of the download and
loading libraries are switched off because qcore shows progress of its own.

Call `silence()` once, at the start of a process and before heavy imports: the command line, the workers and
the tests do.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable

# (logger, pattern at the start of the message): why it means nothing to a user. Transformers imports torchao
# by itself; what other engines log stands with them.
LOGGED = (
    # CUDA kernels, or kernels built for another Python; the paths used here are plain torch
    ("torchao", r"Failed to load \S*_C_(mxfp8|cutlass)"),
    ("torch.utils._pytree", r"<enum '\w+'> is an Enum subclass"),
)
WARNED = (
    (
        UserWarning,
        r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation",
    ),
    (DeprecationWarning, r"torch\.ao\.quantization is deprecated"),
    (DeprecationWarning, r"`torch\.jit\.script(_method)?` is deprecated"),
)
BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


class _Drop(logging.Filter):
    """Drop the records of one logger whose message starts with `pattern`."""

    def __init__(self, pattern: str):
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.match(record.getMessage())


def drop_messages(logged: Iterable[tuple[str, str]]) -> None:
    """Drop messages that begin with a pattern at a logger; doing it again changes nothing."""
    for name, pattern in logged:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Drop) and known.pattern.pattern == pattern for known in logger.filters):
            logger.addFilter(_Drop(pattern))


def silence() -> None:
    """Silence the messages listed above and the progress bars, in this process; calling it again changes
    nothing.

    The bars' switches are environment variables, so child processes inherit them. Imports nothing heavy.
    """
    drop_messages(LOGGED)
    for category, pattern in WARNED:
        warnings.filterwarnings("ignore", message=pattern, category=category)
    for switch in BARS:
        os.environ[switch] = "1"
    _switch_off_loaded_bars()


def _switch_off_loaded_bars() -> None:
    """Libraries that were imported before read their environment variable already and are told directly."""
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils import logging as of_transformers

        of_transformers.disable_progress_bar()
    if "datasets" in sys.modules:
        from datasets.utils import logging as of_datasets

        of_datasets.disable_progress_bar()

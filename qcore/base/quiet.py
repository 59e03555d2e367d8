"""Silence messages of other libraries that mean nothing to a user, and no others.

Examples are a CUDA extension that does not load on a machine without CUDA, a deprecated interface, or a cast
input, reported once per matrix product. Each message is matched by its text at its logger or warning class.
Other messages of the same library still appear, and errors are never silenced. Progress bars of the download
and loading libraries are off because qcore shows its own progress.

Call `silence()` once, at the start of a process and before heavy imports: the command line, the workers and
the tests do.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable

# (logger, pattern at the start of the message), each with the reason why users need not see it. Transformers
# imports torchao by itself; the messages of other engines are listed in their files.
LOGGED = (
    # CUDA kernels, or kernels built for another Python; the paths used here are plain torch
    ("torchao", r"Failed to load \S*_C_(mxfp8|cutlass)"),
    ("torch.utils._pytree", r"<enum '\w+'> is an Enum subclass"),
    # packages with GPU kernels for recurrences and convolutions; transformers' plain torch computes the same
    ("transformers.integrations.hub_kernels", r"`\w+` is falling back to its reference PyTorch"),
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
    """Drop messages that begin with a pattern, per logger. A second call changes nothing."""
    for name, pattern in logged:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Drop) and known.pattern.pattern == pattern for known in logger.filters):
            logger.addFilter(_Drop(pattern))


def silence() -> None:
    """Silence the messages listed above and the progress bars in this process. A second call changes nothing.

    The progress bars are switched by environment variables, which child processes inherit. Imports no heavy
    library.
    """
    drop_messages(LOGGED)
    for category, pattern in WARNED:
        warnings.filterwarnings("ignore", message=pattern, category=category)
    for switch in BARS:
        os.environ[switch] = "1"
    _switch_off_loaded_bars()


def _switch_off_loaded_bars() -> None:
    """Switch off the bars of libraries that are already imported and so have read their environment
    variable."""
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils import logging as of_transformers

        of_transformers.disable_progress_bar()
    if "datasets" in sys.modules:
        from datasets.utils import logging as of_datasets

        of_datasets.disable_progress_bar()

"""Export to version 1 of GPTQ's format, which stores zero points minus one, see `qcore.interop.gptq`: for
readers that do not know version 2."""

from qcore.interop import gptq
from qcore.library.gptq_folder import Gptq

TARGET = Gptq("gptq-v1", gptq.V1)

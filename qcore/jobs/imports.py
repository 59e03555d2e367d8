"""What most tasks import, imported once by the process that they are forked from."""

import gc

import transformers.modeling_utils  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401

import qcore.verbs.prepare  # noqa: F401

gc.freeze()  # no collection of a child then writes to the memory that it shares

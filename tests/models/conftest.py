"""Checkpoints that the tests of this room share."""

from checkpoints import folder, originals  # noqa: F401 (fixtures)

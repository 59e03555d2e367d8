"""Checkpoints that the tests of loading share."""

import shutil

import pytest
import tiny


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A folder of each kind of tiny model, by kind. Not to be changed."""
    folder = tmp_path_factory.mktemp("originals")
    return {kind: tiny.checkpoint(kind, folder / kind) for kind in tiny.CONFIGS}


@pytest.fixture
def folder(originals, tmp_path):
    """A copy of the tiny llama that a test may damage."""
    return shutil.copytree(originals["llama"], tmp_path / "llama")

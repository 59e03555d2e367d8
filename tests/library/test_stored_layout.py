"""Models whose files hold several weights in one tensor: streamed whole, or refused before any work."""

import pytest
import torch

from qcore.base.errors import InputError
from qcore.library.finite import require_finite
from qcore.recipes import parse
from qcore.verbs import export
from tests.zoo import build
from tests.zoo.checks import run
from tests.zoo.shrink import EVEN
from tests.zoo.subject import Subject


@pytest.mark.parametrize("kind", ["hrm_text", "lara_mini"])
def test_split_tensors_are_streamed_whole(kind, tmp_path):
    """On the meta device, parts of split tensors at equal offsets counted as one storage: streaming left out
    all but the first."""
    subject = Subject(kind, build(kind, tmp_path / "original"), tmp_path)
    assert [run(subject, check).outcome for check in ("int4-g32", "stream")] == ["ok", "ok"]


@pytest.mark.parametrize("kind", ["granitemoe", "hrm_text"], ids=["experts in one tensor", "mixed rows"])
def test_what_cannot_be_packed_is_refused_before_any_work(kind, tmp_path):
    original = build(kind, tmp_path / "original", shape=EVEN)
    with pytest.raises(InputError, match="experts in one tensor|cannot be packed"):
        export.check(str(original), parse("int4-g32-sym"), tmp_path / "exported", to="compressed-tensors")


def test_sizes_that_differ_between_layers(tmp_path):
    """Dots 3's windowed layers have another number of heads; its config refuses to give one number."""
    subject = Subject("dots3_note_text", build("dots3_note_text", tmp_path / "original"), tmp_path)
    assert run(subject, "int8").outcome == "ok"


@pytest.mark.parametrize("kind", ["internlm3", "exaone"])
def test_flat_configs_that_share_a_class(kind, tmp_path):
    subject = Subject(kind, build(kind, tmp_path / "original"), tmp_path)
    assert run(subject, "load").outcome == "ok"


def test_an_open_bound_is_no_weight(tmp_path):
    """Gemma 4's audio tower stores infinite bounds, and was refused for weights that are not finite."""
    require_finite("bound", torch.tensor(float("inf")))
    for tensor in (torch.tensor(float("nan")), torch.tensor([float("inf")])):
        with pytest.raises(InputError, match="must be finite"):
            require_finite("weight", tensor)

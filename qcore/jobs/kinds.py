"""The kinds of job there are."""

from qcore.base.errors import InputError
from qcore.base.registry import Registry
from qcore.jobs.kind import JobKind
from qcore.jobs.kind_compare import Comparison
from qcore.jobs.kind_folder import Export, StreamedQuantization
from qcore.jobs.kind_make import Distillation, Pruning, Training
from qcore.jobs.kind_probe import SpeedProbe
from qcore.jobs.kind_sensitivity import Sensitivity
from qcore.jobs.status import COMPARE

KINDS: Registry[JobKind] = Registry("kind of job")
MAKING = ("qat", "prune", "distill")  # those that make a model from another

for _kind in (
    Comparison(),
    Training(),
    Pruning(),
    Distillation(),
    Export(),
    StreamedQuantization(),
    Sensitivity(),
    SpeedProbe(),
):
    KINDS.register(_kind.name)(_kind)


def describe(request: dict) -> str:
    """Return what a request asks for besides the model, in a few words."""
    try:
        return kind_of(request).describe(request)
    except (InputError, KeyError, TypeError):  # a damaged record, or one of a newer version
        return str(request.get("kind", "?"))


def kind_of(request: dict | None) -> JobKind:
    """Return the kind of a request's dictionary. Those of comparisons do not name it. Raises `InputError` for
    a kind that this version does not know."""
    return KINDS[str((request or {}).get("kind", COMPARE))]

"""The registry of job kinds."""

from qcore.base.errors import InputError
from qcore.base.registry import Registry
from qcore.jobs.kind import JobKind
from qcore.jobs.kind_audit import Auditing
from qcore.jobs.kind_compare import Comparison
from qcore.jobs.kind_folder import Export, StreamedQuantization
from qcore.jobs.kind_make import Distillation, Pruning, Training
from qcore.jobs.kind_probe import SpeedProbe
from qcore.jobs.kind_sensitivity import Sensitivity
from qcore.jobs.status import COMPARE

KINDS: Registry[JobKind] = Registry("kind of job")
MAKING = ("qat", "prune", "distill")  # kinds that make a model from another

for _kind in (
    Comparison(),
    Training(),
    Pruning(),
    Distillation(),
    Export(),
    StreamedQuantization(),
    Sensitivity(),
    SpeedProbe(),
    Auditing(),
):
    KINDS.register(_kind.name)(_kind)


def describe(request: dict) -> str:
    """Return a short description of a request, without the model."""
    try:
        return kind_of(request).describe(request)
    except (InputError, KeyError, TypeError):  # a record that is damaged or from a newer version
        return str(request.get("kind", "?"))


def kind_of(request: dict | None) -> JobKind:
    """Return the kind of a request's dictionary; a comparison's names no kind. Raise `InputError` for a kind
    unknown to this version."""
    return KINDS[str((request or {}).get("kind", COMPARE))]

"""The audit of a checkpoint, see `qcore.verbs.audit`, in a process of its own: a page can cancel it, and what
a damaged file does to the process ends with it."""

from dataclasses import dataclass
from typing import ClassVar

from qcore.base.errors import InputError
from qcore.jobs.kind import Context, JobKind, JobRequest


@dataclass(frozen=True, kw_only=True)
class AuditRequest(JobRequest):
    """Without `values`, only headers and settings are read."""

    kind: ClassVar[str] = "audit"
    values: bool = True

    def __post_init__(self):
        super().__post_init__()
        if type(self.values) is not bool:
            raise InputError(f"values is {self.values!r}, but it must be true or false.")


class Auditing(JobKind):
    """The audit of one model."""

    name, title = "audit", "Audit"
    request = AuditRequest

    def describe(self, record: dict) -> str:
        """Return what is read."""
        return "audit" if record["values"] else "audit of the headers"

    def run(self, request: AuditRequest, context: Context) -> dict:
        """Return the audit, JSON-ready."""
        from qcore.verbs import audit

        found = audit.run(request.model, request.revision, values=request.values, progress=context.progress)
        return found.to_dict()

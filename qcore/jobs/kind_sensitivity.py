"""Sensitivities of a model's layers, see `qcore.verbs.sensitivity`. Measurements are kept block by block, so
a stopped job resumes after its last block when the same request is submitted again."""

from dataclasses import dataclass
from typing import ClassVar

from qcore.base.progress import Progress
from qcore.jobs.kind import Context, JobKind, JobRequest
from qcore.verbs import sensitivity as verb


@dataclass(frozen=True, kw_only=True)
class SensitivityRequest(verb.Request, JobRequest):
    """The request of the verb, as a job."""

    kind: ClassVar[str] = "sensitivity"
    FILES: ClassVar[tuple[str, ...]] = ("text",)

    def check(self, progress: Progress) -> None:
        """Raise `InputError` for a method that does not round layers one by one, or a text that cannot be
        read, and `UnavailableError` for a device that is not here."""
        from qcore.quantization.calibration.text import calibration_text
        from qcore.quantization.sensitivity.rounding import check_method
        from qcore.verbs.checks import check_device

        check_device(self.device)
        check_method(self.method)
        calibration_text(self.text)


class Sensitivity(JobKind):
    """Prediction, and optionally measurement, of the loss of each layer in each format."""

    name, title, resumes = "sensitivity", "Sensitivities", True
    request = SensitivityRequest

    def describe(self, record: dict) -> str:
        """Return the method."""
        return f"sensitivities, {record['method']}"

    def run(self, request: SensitivityRequest, context: Context) -> dict:
        """Compute the table, and return its key in the store."""
        key, _ = verb.run(request, context.progress)
        return {"key": key}

"""`audit`: what is in a checkpoint, and what is broken in it.

Headers and settings first, then the values, weight by weight through maps of the file: an audit needs no more
memory than the largest tensor. It reads models that loading refuses, and goes on after each thing that is
wrong. Nothing is executed and nothing is unpickled.

The checks are small functions with a name, a sentence and a severity, registered by the files `audit_*.py`:

    audit_files      files, shards, index, manifest        audit_text      vocabulary, tokens, chat template
    audit_names      names, shapes, experts, tied head     audit_values    NaN, scales, zero points, dtypes
    audit_ignored    modules left in floating point        audit_gguf      what llama.cpp expects
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.base.files import sha256
from qcore.base.progress import Progress
from qcore.base.transformers_internals import stored_order
from qcore.verbs import audit_files, audit_gguf, audit_ignored, audit_names, audit_text, audit_values
from qcore.verbs.audit_ours import digests, ledger_of_graph
from qcore.verbs.audit_reading import parts_of
from qcore.verbs.audit_subject import Subject, read
from qcore.verbs.audit_types import CHECKS, SEVERITIES, Audit, Check, Finding, LedgerLine, Spot

if TYPE_CHECKING:
    from qcore.verbs.audit_weights import StoredWeight

REGISTERED = (audit_files, audit_names, audit_ignored, audit_text, audit_values, audit_gguf)
__all__ = ["CHECKS", "SEVERITIES", "Audit", "Finding", "LedgerLine", "Spot", "run"]


def run(
    model: str | Path,
    revision: str | None = None,
    *,
    values: bool = True,
    public: bool | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Return the audit of `model`: a folder, a GGUF file, a default model, or a hub id with an optional
    `revision`, of which only headers are read.

    Without `values`, no weights are read: NaN, scales and zero points are not looked at. Raise `InputError`
    for a name of no kind and for a folder without weights, `UnavailableError` if the hub is unreachable.
    """
    if progress is not None:
        progress(0, 0, "reading headers")
    subject = read(model, revision, public=public, progress=progress)
    checks = [CHECKS[name] for name in CHECKS if subject.kind in CHECKS[name].kinds]
    spots: dict[str, list[Spot]] = {}
    for check in checks:
        if check.whole is not None:
            spots[check.name] = list(check.whole(subject))
    read_bytes = 0
    if values and subject.local:
        read_bytes = _look_at_values(subject, checks, spots, progress)
    elif subject.local:
        subject.not_looked_at.append("The values of weights and scales were not looked at.")
    findings = [finding for check in checks if (finding := check.finding(spots.get(check.name, ())))]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return _audit(subject, findings, read_bytes)


def _look_at_values(
    subject: Subject, checks: list[Check], spots: dict[str, list[Spot]], progress: Progress | None
) -> int:
    """Run the checks of weights, and compare the SHA-256 of files that qcore wrote. Return the bytes read."""
    own = [check for check in checks if check.of_weight is not None]
    total = sum(weight.nbytes for weight in subject.weights)
    done = 0
    for weight, parts in _readable(subject):
        for check in own:
            if check.of_weight is not None:
                spots.setdefault(check.name, []).extend(check.of_weight(weight, parts, subject))
        done += weight.nbytes
        del parts
        if progress is not None:
            progress(done, total, f"read {weight.name}")
    if not any(spots.values()):  # a damaged file has another digest anyway
        for file, digest in digests(subject).items():
            if progress is not None:
                progress(done, total, f"computing the SHA-256 of {file}")
            if file in subject.files and sha256(subject.folder / file) != digest:
                spots.setdefault("qcore-manifest", []).append(
                    Spot(file, "Its SHA-256 is not the one it was saved with: some bytes have changed.")
                )
    return done


def _readable(subject: Subject) -> Iterator[tuple[StoredWeight, dict]]:
    """Yield each weight whose values can be read with its tensors by role."""
    unknown: dict[str, int] = {}
    for weight in subject.weights:
        if not all(subject.readable(name) for name in weight.parts.values()):
            continue
        try:
            parts = parts_of(subject, weight)
        except InputError:
            unknown[weight.form] = unknown.get(weight.form, 0) + 1
            continue
        yield weight, parts
        del parts
    for form, count in unknown.items():
        subject.not_looked_at.append(f"The values of {count} tensors in {form} were not looked at.")


def _audit(subject: Subject, findings: list[Finding], read_bytes: int) -> Audit:
    shapes = {}
    if subject.structure is not None:
        shapes = {name: tensor.numel() for name, tensor in subject.structure.model.state_dict().items()}
    lines = [weight.line(shapes.get(weight.name, weight.settings.get("count"))) for weight in subject.weights]
    graph = ledger_of_graph(subject)
    files = {tensor.file for tensor in subject.tensors.values()} or set(digests(subject)) & set(subject.files)
    config = subject.config
    architecture = config.get("model_type") if subject.of_gguf is None else subject.of_gguf.architecture
    return Audit(
        model=subject.name,
        kind=subject.kind,
        revision=subject.revision,
        architecture=architecture if isinstance(architecture, str) else None,
        method=subject.method,
        files=len(files),
        file_bytes=sum(subject.files[file] for file in files),
        read_bytes=read_bytes,
        tensors=len(subject.tensors),
        parameters=sum(line.weights for line in graph) if graph else subject.parameters,
        findings=tuple(findings),
        ledger=tuple(graph or sorted(lines, key=lambda line: stored_order(line.name))),
        not_looked_at=tuple(dict.fromkeys(subject.not_looked_at)),
    )

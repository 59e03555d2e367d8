"""Folders that qcore wrote: compared with their manifest, and with the SHA-256 in it."""

from __future__ import annotations

from collections.abc import Iterator

from qcore.base.errors import InputError, QcoreError
from qcore.library import manifest as manifests
from qcore.library.saving import MANIFEST
from qcore.models.checkpoint import ONNX_MANIFEST
from qcore.models.config import checked, to_transformers
from qcore.verbs.audit_subject import Subject
from qcore.verbs.audit_types import LedgerLine, Spot


def differences(subject: Subject) -> Iterator[Spot]:
    """Yield what loading would refuse: a damaged manifest, or tensors that differ from it. Files that are
    reported as damaged or cut short are not reported again."""
    if ONNX_MANIFEST in subject.files:
        yield from _onnx(subject)
        return
    if MANIFEST in subject.damaged:
        yield Spot(MANIFEST, subject.damaged[MANIFEST])
        return
    whole = not subject.damaged and all(subject.files[file] == size for file, size in subject.lengths.items())
    if subject.manifest is None or not whole:
        return
    try:
        from qcore.models.assembly import empty_model

        model = empty_model(to_transformers(checked(dict(subject.config))), meta_buffers=True)
        manifests.check(subject.manifest, model, subject.tensors)
    except InputError as error:
        yield Spot(MANIFEST, str(error))


def _onnx(subject: Subject) -> Iterator[Spot]:
    from qcore.library import onnx_folder

    if not subject.local:
        subject.not_looked_at.append("The ONNX graph was not compared with its manifest.")
        return
    try:
        onnx_folder.checkpoint(subject.folder, subject.name, "")
    except QcoreError as error:
        yield Spot(ONNX_MANIFEST, str(error))


def ledger_of_graph(subject: Subject) -> list[LedgerLine]:
    """Return the ledger in the manifest of an ONNX folder, whose weights lie inside the graph; empty for
    other folders, and for a manifest that is reported as damaged."""
    try:
        ledger = manifests.read_ledger(subject.settings[ONNX_MANIFEST]["ledger"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return [
        LedgerLine(
            row.name,
            row.format or row.dtype,
            row.shape,
            0 if row.shares else row.weights,
            row.bytes_after,
            row.format is not None,
        )
        for row in ledger.rows
    ]


def digests(subject: Subject) -> dict[str, str]:
    """Return the SHA-256 that the manifest states per file; empty for folders without a usable manifest."""
    if subject.manifest is not None:
        return dict(subject.manifest.sha256)
    record = subject.settings.get(ONNX_MANIFEST, {}).get("sha256")
    return (
        {file: digest for file, digest in record.items() if isinstance(digest, str)}
        if isinstance(record, dict)
        else {}
    )

"""What an audit consists of: checks, their findings, and the registry in which every check enters itself.

A check looks at the whole subject, or at one weight at a time with its values. It yields a `Spot` for each
place that is wrong; the spots of one check make one finding. A check states once what such damage does to the
model and what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from qcore.base.registry import Registry

if TYPE_CHECKING:
    import torch

    from qcore.verbs.audit_subject import Subject
    from qcore.verbs.audit_weights import StoredWeight

BROKEN, LOSES, KNOW = "broken", "loses quality", "worth knowing"
SEVERITIES = (BROKEN, LOSES, KNOW)
FOLDER, GGUF = "folder", "gguf"
_DOES = {  # what one finding does, and what several do
    BROKEN: ("breaks the model", "break the model"),
    LOSES: ("loses quality", "lose quality"),
    KNOW: ("is worth knowing", "are worth knowing"),
}


@dataclass(frozen=True)
class Spot:
    """One place that is wrong: `where` is a tensor, a module, a pattern or a file, `what` a sentence."""

    where: str
    what: str


@dataclass(frozen=True)
class Finding:
    """The `spots` that one check found, what they do to the model, and what to do."""

    check: str
    severity: str
    title: str
    effect: str
    remedy: str
    spots: tuple[Spot, ...]

    @classmethod
    def from_dict(cls, record: dict) -> Finding:
        """Rebuild a finding from its JSON form."""
        return cls(**record | {"spots": tuple(Spot(**spot) for spot in record["spots"])})


@dataclass(frozen=True)
class LedgerLine:
    """One weight of the file: its `form` ("BF16", "GPTQ int4"), logical shape, number of `weights`, stored
    bytes with all its parts, and whether it is quantized. `shape` is empty where the header does not tell
    it."""

    name: str
    form: str
    shape: tuple[int, ...]
    weights: int
    nbytes: int
    quantized: bool

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits per weight; None for an empty tensor."""
        return 8 * self.nbytes / self.weights if self.weights else None


@dataclass(frozen=True)
class FormTotal:
    """The weights of one form together."""

    form: str
    quantized: bool
    tensors: int
    weights: int
    nbytes: int

    @property
    def bits(self) -> float | None:
        """Stored bits per weight."""
        return 8 * self.nbytes / self.weights if self.weights else None


Whole = Callable[["Subject"], Iterable[Spot]]
OfWeight = Callable[["StoredWeight", "Mapping[str, torch.Tensor]", "Subject"], Iterable[Spot]]
Run = TypeVar("Run", Whole, OfWeight)


@dataclass(frozen=True)
class Check:
    """A registered check. `words` say what is wrong where it finds something; `kinds` are the kinds of
    subject that it can look at. Exactly one of `whole` and `of_weight` is its function: `whole` gets the
    subject, `of_weight` gets a weight, its tensors by role (mapped from the file), and the subject."""

    name: str
    severity: str
    words: str
    effect: str
    remedy: str
    kinds: tuple[str, ...]
    whole: Whole | None = None
    of_weight: OfWeight | None = None

    def finding(self, spots: Iterable[Spot]) -> Finding | None:
        """Return the finding of these spots; None if there are none."""
        found = tuple(spots)
        if not found:
            return None
        return Finding(self.name, self.severity, self.words, self.effect, self.remedy, found)


CHECKS: Registry[Check] = Registry("check")


def check(
    name: str, severity: str, words: str, *, effect: str, remedy: str, kinds: tuple[str, ...] = (FOLDER,)
) -> Callable[[Whole], Whole]:
    """Return a decorator that registers a check of the whole subject."""

    def enter(run: Whole) -> Whole:
        CHECKS.register(name)(Check(name, severity, words, effect, remedy, kinds, whole=run))
        return run

    return enter


def check_of_weights(
    name: str, severity: str, words: str, *, effect: str, remedy: str, kinds: tuple[str, ...] = (FOLDER,)
) -> Callable[[OfWeight], OfWeight]:
    """Return a decorator that registers a check of one weight and its values."""

    def enter(run: OfWeight) -> OfWeight:
        CHECKS.register(name)(Check(name, severity, words, effect, remedy, kinds, of_weight=run))
        return run

    return enter


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result. `files` are the weight files that were read, `read_bytes` the bytes of values that were
    looked at, `not_looked_at` the sentences on what was left out. `parameters` counts logical weights, a tied
    matrix once; it is None where the header does not tell every shape."""

    model: str
    kind: str
    revision: str | None
    architecture: str | None
    method: str | None
    files: int
    file_bytes: int
    read_bytes: int
    tensors: int
    parameters: int | None
    findings: tuple[Finding, ...]
    ledger: tuple[LedgerLine, ...]
    not_looked_at: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """Whether a finding says that the model does not work."""
        return any(finding.severity == BROKEN for finding in self.findings)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(line.nbytes for line in self.ledger)

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits per weight over all tensors."""
        count = sum(line.weights for line in self.ledger)
        return 8 * self.stored_bytes / count if count else None

    @property
    def kept(self) -> float | None:
        """The share of the weights that is stored in floating point, 0 … 1."""
        count = sum(line.weights for line in self.ledger)
        plain = sum(line.weights for line in self.ledger if not line.quantized)
        return plain / count if count else None

    def by_form(self) -> list[FormTotal]:
        """Return the ledger summed over the tensors of each form, largest first."""
        lines: dict[tuple[str, bool], list[LedgerLine]] = {}
        for line in self.ledger:
            lines.setdefault((line.form, line.quantized), []).append(line)
        totals = [
            FormTotal(form, quantized, len(own), sum(x.weights for x in own), sum(x.nbytes for x in own))
            for (form, quantized), own in lines.items()
        ]
        return sorted(totals, key=lambda total: -total.nbytes)

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        if not self.findings:
            looked = "" if self.read_bytes else " in the headers"
            return f"Sound: no check found anything wrong{looked}."
        counts = {name: sum(f.severity == name for f in self.findings) for name in SEVERITIES}
        parts = [f"{n} {_DOES[name][n > 1]}" for name, n in counts.items() if n]
        first, *others = parts
        number, _, does = first.partition(" ")
        first = f"{number} {'finding' if number == '1' else 'findings'} {does}"
        return f"{'Broken' if self.broken else 'Usable'}: {', '.join([first, *others])}."

    @property
    def contents(self) -> str:
        """What is in the file, in one sentence."""
        from qcore.results.report import human_bytes, human_number, human_percent

        count = "An unknown number of" if self.parameters is None else f"{self.parameters:,}"
        how = f" quantized as {self.method}" if self.method else ""
        files = f"{self.files} {'file' if self.files == 1 else 'files'}"
        return (
            f"{count} weights of a {self.architecture or 'nameless'} model{how}, "
            f"{human_bytes(self.stored_bytes)} in {files}: {human_number(self.bits_per_weight)} bits per "
            f"weight, {human_percent(self.kept)} of the weights in floating point."
        )

    def to_dict(self) -> dict:
        """Return the JSON-ready form."""
        return asdict(self) | {
            "sentence": self.sentence,
            "broken": self.broken,
            "stored_bytes": self.stored_bytes,
            "bits_per_weight": self.bits_per_weight,
            "kept": self.kept,
        }

    @classmethod
    def from_dict(cls, record: dict) -> Audit:
        """Rebuild an audit from `to_dict`."""
        named = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(
            **named
            | {
                "findings": tuple(Finding.from_dict(each) for each in record["findings"]),
                "ledger": tuple(
                    LedgerLine(**each | {"shape": tuple(each["shape"])}) for each in record["ledger"]
                ),
                "not_looked_at": tuple(record["not_looked_at"]),
            }
        )

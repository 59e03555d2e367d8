"""The baseline's predictions, kept so that any number of quantized models can be compared with them over the
whole vocabulary.

Logits of 4096 tokens over 49,152 words take 805 MB; the output head's *inputs* take 9 MB, and head(input)
gives the same logits again. So a reference is a safetensors file with

    hidden   (tokens scored, H)   the head's inputs, written window by window, so recording needs no memory
    check    (1, V)               the baseline's logits of the first scored token, to check recomputed ones
    head     (V, H)               only if the checkpoint folder does not hold the head's weight, bit for bit
    bias     (V,)                 if there is one

and, in its metadata, the text and windows it was recorded over. Opening maps the file. If a model's head
equals the baseline's, the model's own head is used: it is not loaded twice, and identical models take
identical steps.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qcore.base.errors import InputError, UnavailableError
from qcore.base.tensor_file import Piece, TensorFile
from qcore.evaluation.logits import Chunk, LogitReader, LogitTransform, close

FORMAT = "qcore-reference-1"
ROWS = 8192  # rows of a 16-bit head that are widened at a time


@dataclass(frozen=True)
class Source:
    """The position of the head's weight: a tensor in a safetensors file."""

    file: str
    tensor: str


class Recorder:
    """Writes a reference while a model is evaluated: `add` each chunk, then `close`. `discard` removes a file
    that was not closed.

    Raise `UnavailableError` if the model's head is not a plain matrix: a reference must be recorded from the
    unquantized model.
    """

    def __init__(
        self,
        path: Path,
        reader: LogitReader,
        ids: torch.Tensor,
        window: int,
        stride: int,
        checkpoint: Path | None,
    ):
        self._path = Path(path)
        self._file: TensorFile | None = None
        self._checkpoint = checkpoint
        self._reader = reader
        self._rows = len(ids) - 1
        self._about = {
            "format": FORMAT,
            "text": digest(ids),
            "window": window,
            "stride": stride,
            "transform": asdict(reader.transform),
        }

    def add(self, chunk: Chunk) -> None:
        """Append the head's inputs of a chunk."""
        weight = getattr(self._reader.head, "weight", None)
        if (
            chunk.hidden is None
            or not isinstance(weight, torch.Tensor)
            or weight.shape != (chunk.logits.shape[1], chunk.hidden.shape[1])
        ):
            raise UnavailableError(
                f"{type(self._reader.model).__name__} cannot serve as the baseline: its output "
                "head is not a plain matrix. "
                "Record the reference from the unquantized model."
            )
        if self._file is None:
            self._file = self._start(chunk.logits, chunk.hidden, weight)
        self._file.write("hidden", chunk.hidden)

    def _start(self, logits: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> TensorFile:
        extra = {"check": logits[:1].clone()}
        source = find_tensor(weight, self._checkpoint) if self._checkpoint else None
        if source is None:
            extra["head"] = weight.detach()
        bias = getattr(self._reader.head, "bias", None)
        if bias is not None:
            extra["bias"] = bias.detach()
        self._about["head"] = asdict(source) if source else None
        pieces = [Piece("hidden", hidden.dtype, (self._rows, hidden.shape[1]))]
        pieces += [Piece(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in extra.items()]
        try:
            file = TensorFile(self._path, pieces, {"qcore": json.dumps(self._about)})
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror or error}.") from error
        for name, tensor in extra.items():
            file.write(name, tensor)
        return file

    def close(self) -> None:
        """Flush to disk and rename the file to its final name."""
        if self._file is None:
            raise ValueError("nothing was added to the reference")
        self._file.close()

    def discard(self) -> None:
        """Remove the unfinished file; do nothing after `close`."""
        if self._file is not None:
            self._file.discard()


class Reference:
    """A recorded baseline. Record one with `evaluate(…, record=path)`, `open` it, and pass it to `evaluate`
    with another model."""

    def __init__(self, path: Path, about: dict[str, Any], file: Any) -> None:
        self.path = path
        self.window: int = about["window"]
        self.stride: int = about["stride"]
        self.transform = LogitTransform(**about["transform"])
        self._text = about["text"]
        self._hidden = file.get_slice("hidden")
        self._check = file.get_tensor("check")
        self._bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118 (not a mapping)
        self._weight = _read(Source(**about["head"])) if about["head"] else file.get_tensor("head")
        self._lender: LogitReader | None = None
        self._verify()

    @classmethod
    def open(cls, path: Path) -> "Reference":
        """Map a recorded reference. Raise `InputError` if it is missing or damaged, or if its baseline
        checkpoint has changed since."""
        path = Path(path)
        try:
            file = safe_open(path, framework="pt")
            about = json.loads(file.metadata()["qcore"])
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}, not {FORMAT!r}")
            return cls(path, about, file)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The baseline's reference {path.name} cannot be read ({error}); record it again."
            ) from error

    @property
    def tokens_scored(self) -> int:
        """Return how many tokens were scored."""
        return int(self._hidden.get_shape()[0])

    def match(self, ids: torch.Tensor, window: int, stride: int, reader: LogitReader) -> None:
        """Prepare the comparison with the model of `reader` over `ids` (T,).

        Raise `InputError` if the reference was recorded over another text or other windows.
        """
        if (self._text, self.window, self.stride) != (digest(ids), window, stride):
            was = f"window {self.window}, stride {self.stride}"
            what = (
                "another text"
                if self._text != digest(ids)
                else f"{was}, not window {window}, stride {stride}"
            )
            raise InputError(f"The baseline's reference was recorded over {what}; record it again.")
        self._lender = reader if self._same_head(reader) else None

    def logits(self, start: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the baseline's float32 logits (count, V) of the scored tokens from number `start` on."""
        hidden = self._hidden[start : start + count].to(device)
        if self._lender:
            return self._lender.project(hidden)
        self._weight = self._weight.to(device)
        return self._project(hidden)

    def _project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return transform(hidden · weightᵀ + bias) in float32."""
        weight = self._weight
        if weight.dtype == hidden.dtype:
            logits = (hidden @ weight.T).float()
        else:
            logits = torch.cat([(hidden.float() @ rows.float().T) for rows in weight.split(ROWS)], dim=1)
        if self._bias is not None:
            logits += self._bias.to(logits)
        return self.transform(logits)

    def _verify(self) -> None:
        first = self._hidden[:1]
        own = self._project(first)
        if own.shape != self._check.shape or not close(own, self._check, first.dtype):
            raise InputError(
                f"The baseline's reference {self.path.name} does not match its checkpoint "
                "any more; record it again."
            )

    def _same_head(self, reader: LogitReader) -> bool:
        """Return whether that model computes its logits exactly as the baseline did."""
        head = reader.head
        if (
            type(head) is not torch.nn.Linear
            or reader.transform != self.transform
            or (head.bias is None) != (self._bias is None)
        ):
            return False
        if head.weight.dtype != self._hidden[:1].dtype:  # such as a model that computes in 16 bits
            return False
        pairs = [(head.weight, self._weight)] + ([] if head.bias is None else [(head.bias, self._bias)])
        return all(
            own.shape == base.shape and torch.equal(own.detach().to(base), base) for own, base in pairs
        )


def digest(ids: torch.Tensor) -> str:
    """Return the SHA-256 of token ids (T,) in hexadecimal."""
    return hashlib.sha256(ids.to("cpu", torch.int64).contiguous().numpy().tobytes()).hexdigest()


def find_tensor(weight: torch.Tensor, folder: Path) -> Source | None:
    """Find the tensor in the safetensors files of a checkpoint `folder` that equals `weight` (V, H) value for
    value. Return None if there is none."""
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if tuple(tensors.get_slice(name).get_shape()) == tuple(weight.shape):
                    stored = tensors.get_tensor(name)
                    if stored.is_floating_point() and _equal(weight.detach(), stored):
                        return Source(str(file.resolve()), name)
    return None


def _equal(weight: torch.Tensor, stored: torch.Tensor) -> bool:
    """Compare row block by row block, so that a 16-bit tensor is never widened as a whole."""
    return all(
        torch.equal(own.cpu(), other.to(own.dtype))
        for own, other in zip(weight.split(ROWS), stored.split(ROWS), strict=True)
    )


def _read(source: Source) -> torch.Tensor:
    with safe_open(source.file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(source.tensor)
        return tensor

"""Unquantized models made by qcore (pruned, distilled): an ordinary folder that transformers and qcore load,
with a record.

Besides the files of a checkpoint, the folder holds `qcore-made.json`: the original model, the method, the
text (so that the model is never evaluated on it), and the duration.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.files import read_json, write_json
from qcore.base.transformers_internals import quiet
from qcore.library.saving import MADE, replaced_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qcore.library.loading import Loaded


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict,
    folder: Path | str,
    *,
    overwrite: bool = False,
) -> Path:
    """Write `model`, its tokenizer and the `record` of how it was made into `folder`, which appears complete
    or not at all.

    Raise `InputError` as `check_folder` does.
    """
    with replaced_folder(Path(folder), overwrite=overwrite) as scratch:
        with quiet():
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        write_json(scratch / MADE, record)
    return Path(folder)


def check_judged(loaded: Loaded, name: str, sha256: str, ids: torch.Tensor) -> None:
    """Raise `InputError` if the text called `name`, whose tokens `ids` (T,) are scored, was used to make the
    model."""
    from qcore.quantization.calibration import check_record

    made = (
        loaded.ledger.calibration
        if loaded.ledger is not None
        else (read_made(loaded.checkpoint.folder) or {}).get("calibration")
    )
    if made:
        check_record(made, name, sha256, ids)


def describe(folder: Path) -> str | None:
    """Return a sentence on how the model in `folder` was made; None if there is no record of that."""
    record = read_made(folder)
    if record is None:
        return None
    try:
        origin = record["from"]["model"]
        if record["kind"] == "distill":
            layers, seconds, tokens = (
                len(record["kept_layers"]),
                record["trained_seconds"],
                record["trained_tokens"],
            )
            return (
                f"Distilled from {origin} to {layers} layers, trained for {seconds:.0f} s on "
                f"{tokens:,} tokens."
            )
        return f"Made from {origin} by pruning: {record['method']}, {100 * record['share']:g} %."
    except (TypeError, KeyError, ValueError):
        return None


def read_made(folder: Path) -> dict | None:
    """Return the record of how the model in `folder` was made; None if qcore did not make it."""
    record = read_json(Path(folder) / MADE)
    return record if isinstance(record, dict) else None

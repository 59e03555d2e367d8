"""Quantize a checkpoint of any size: each tensor is read through a memory map, quantized, and written to a
shard.

All cores work on one tensor, while the system reads the next one and a thread writes and hashes the previous
one. Besides the libraries, memory holds a multiple of the largest stored tensor (or of the largest expert, if
experts are stored one by one):

    rtn       its mapped pages, and twice the quantized form         at most 2 x
    hqq       in addition fp32 codes                                 at most 8 x
    kmeans    in addition sorted values and sums in float64          at most 16 x

for 16-bit sources; half as much for 32-bit ones. A kept tensor is widened a few million weights at a time.
Apart from the division into files, the result equals that of `library.safetensors.save` after quantizing in
memory, bit for bit.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

import qcore
from qcore.base.errors import InputError, UnavailableError
from qcore.base.executor import Executor
from qcore.base.files import write_json
from qcore.base.home import check_space
from qcore.base.progress import Progress
from qcore.formats.tensor import QuantizedTensor
from qcore.library import safetensors
from qcore.library.journal import Journal
from qcore.library.loading import load_tokenizer
from qcore.models import Checkpoint
from qcore.models.checkpoint import INDEX
from qcore.quantization import methods
from qcore.recipes import METHODS, Float, Recipe
from qcore.recipes import Engine as Library
from qcore.recipes.ledger import Ledger
from qcore.streaming.layout import Layout, Shard, Unit, plan
from qcore.streaming.meter import ThroughputMeter
from qcore.streaming.source import Source
from qcore.streaming.spread import clear, write_shards
from qcore.streaming.writer import ShardWriter

SHARD_BYTES = 1 << 30
_CHUNK = 1 << 22  # weights of a kept tensor per widening
_SMALL_FILES = 64 << 20  # bytes for config, tokenizer and manifest


def check(recipe: Recipe) -> None:
    """Raise `InputError` for a recipe that cannot be applied to one tensor at a time, or does not
    quantize."""
    if isinstance(recipe.weights, Float):
        raise InputError(f"{recipe.name} does not quantize. Choose a recipe such as int4-g64.")
    if reason := reason_against(recipe):
        raise InputError(reason)


def reason_against(recipe: Recipe) -> str | None:
    """Return None if `recipe` can be applied to one tensor at a time, else the reason in one or two
    sentences."""
    if isinstance(recipe.weights, Float):
        return None
    if isinstance(recipe.weights, Library):
        return (
            f"{recipe.name} is another library's format, which needs the whole model. Stream one of qcore's "
            "own recipes."
        )
    streams = METHODS[recipe.method].streams
    if not recipe.calibrated and recipe.prepare == "none" and streams:
        return None
    needs = "changes the whole model first" if streams else "needs the whole model to choose codes"
    needs = "reads calibration text" if recipe.calibrated else needs
    return (
        f"{recipe.name} {needs}, so it cannot be applied to one tensor at a time. Quantize the model in "
        "memory, or choose a recipe that uses each weight alone, such as int4-g64-hqq."
    )


def quantize(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Executor | None = None,
) -> Ledger:
    """Write `checkpoint` under `recipe` into a new `folder`, in files of about `shard_bytes`, and return the
    ledger.

    `folder` appears complete or not at all. After a kill, the same call resumes at the first unfinished
    shard. `progress` gets (bytes read, bytes to read, a phrase with speed and remaining time). With an
    `engine` other than this machine, the machines of a cluster write the shards (see `spread.py`), with the
    same bytes.

    Raise `InputError` for a recipe that needs more than one tensor at a time, a model that is already
    quantized or holds NaN, or a target that `check_target` refuses; `UnavailableError` if the disk is full.
    """
    check(recipe)
    folder = safetensors.check_target(recipe, folder, overwrite=overwrite)
    if checkpoint.is_quantized:
        raise InputError(f"{checkpoint.name} is quantized already. Quantize the original model instead.")
    tokenizer = load_tokenizer(checkpoint)
    source = Source(checkpoint)
    layout = plan(source.model, recipe, shard_bytes)
    identity = {
        "model": [checkpoint.digest, checkpoint.stamp],
        "recipe": recipe.to_dict(),
        "shard_bytes": shard_bytes,
        "qcore": qcore.__version__,
    }
    journal = Journal(folder, identity)
    try:
        with journal:
            spread = (
                None
                if engine is None or engine.is_local
                else partial(write_shards, engine, checkpoint, recipe, shard_bytes)
            )
            digests = _write_shards(source, layout, journal, progress, spread)
            about = (source.described(), tokenizer, recipe, layout.ledger, list(layout.tensors), digests)
            safetensors.write_about(*about, journal.folder, origin=checkpoint.origin)
            if len(layout.shards) > 1:
                _write_index(layout, journal.folder)
            clear(journal)
            journal.publish()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
        raise UnavailableError(
            f"The disk that holds {folder} is full. Finished files are kept in {journal.folder}. Free some "
            "space and repeat the same request to resume, or remove that folder."
        ) from error
    return layout.ledger


def _write_shards(
    source: Source, layout: Layout, journal: Journal, progress: Progress | None, spread=None
) -> dict[str, str]:
    """Write the shards that no earlier run finished, and return {file: SHA-256} of all. `spread` writes them
    on a cluster."""
    digests = {shard.file: digest for shard in layout.shards if (digest := journal.finished(shard.file))}
    left = [shard for shard in layout.shards if shard.file not in digests]
    check_space(
        journal.folder, sum(shard.nbytes for shard in left) + _SMALL_FILES, "Writing the quantized model"
    )
    meter = ThroughputMeter(
        progress,
        sum(_read_bytes(source, shard) for shard in left),
        sum(_read_bytes(source, shard) for shard in layout.shards),
    )
    if spread is not None:
        sizes = {shard.file: _read_bytes(source, shard) for shard in left}
        digests |= spread(layout, left, journal, meter, sizes) if left else {}
        meter.finish()
        return _in_order(digests, layout)
    with ThreadPoolExecutor(1, "close") as pool:
        closing: tuple[Shard, Future] | None = (
            None  # a shard that is being flushed to the disk while the next one is computed
        )
        for shard in [*left, None]:
            close = None if shard is None else fill_shard(source, shard, journal.folder, meter).close
            if closing is not None:
                digests[closing[0].file] = closing[1].result()
                journal.note(closing[0].file, digests[closing[0].file])
            closing = None if shard is None or close is None else (shard, pool.submit(close))
    meter.finish()
    return _in_order(digests, layout)


def _in_order(digests: dict[str, str], layout: Layout) -> dict[str, str]:
    """Sort the digests by file, whichever was finished first, because the result is saved."""
    return {shard.file: digests[shard.file] for shard in layout.shards}


def fill_shard(
    source: Source, shard: Shard, folder: Path, meter: ThroughputMeter | None = None
) -> ShardWriter:
    """Write one file of the output to `folder`; closing the result returns its SHA-256. The file depends only
    on the arguments."""
    writer = ShardWriter(folder / shard.file, shard.pieces)
    try:
        for i, unit in enumerate(shard.units):
            if i + 1 < len(shard.units):
                source.expect(shard.units[i + 1].parameter, shard.units[i + 1].expert)
            for name, tensor in _make(source, unit):
                writer.write(name, tensor)
            if meter is not None:
                meter.step(_unit_bytes(source, unit), unit.parameter)
    except BaseException:
        writer.discard()
        raise
    source.forget()
    return writer


def _make(source: Source, unit: Unit) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name in the file, contiguous chunk) for all stored data of `unit`."""
    if unit.target is None:
        (piece,) = unit.pieces
        flat = source.read(unit.parameter).reshape(-1)
        for start in range(0, flat.numel(), _CHUNK):
            part = flat[start : start + _CHUNK]
            if part.is_floating_point() and not all(
                end.isfinite() for end in part.aminmax()
            ):  # a NaN makes minimum and maximum NaN
                source.check_finite(unit.parameter)
            yield piece.name, part.to(piece.dtype, copy=True)
        return
    for piece, tensor in zip(unit.pieces, stored_parts(choose(source, unit)), strict=True):
        if tensor.shape != piece.shape or tensor.dtype != piece.dtype:
            raise RuntimeError(
                f"{piece.name} is {tuple(tensor.shape)} {tensor.dtype}, but the layout has {piece.shape} "
                f"{piece.dtype}"
            )
        yield piece.name, tensor.contiguous()


def choose(source: Source, unit: Unit) -> QuantizedTensor:
    """Return the quantized matrix of `unit`. Raise `InputError` naming the matrix, or the weight that is NaN
    or infinite."""
    target = unit.target
    if target is None:
        raise ValueError(f"{unit.parameter} is not quantized")
    weight = (
        source.read(unit.parameter) if unit.expert is None else source.expert(unit.parameter, unit.expert)
    )
    if target.transposed:
        weight = weight.transpose(-1, -2)
    if target.method != "rtn":
        source.check_finite(unit.parameter, unit.expert)
    try:
        return methods.quantize(weight, target.format, target.method)
    except InputError as error:
        source.check_finite(unit.parameter, unit.expert)  # rounding detects NaN, but not its position
        raise InputError(f"{target.name}: {error}") from error


def stored_parts(weight: QuantizedTensor) -> list[torch.Tensor]:
    """Return the stored parts in the order of `QuantizedTensor.PARTS`."""
    return [part for name, part in weight.parts().items() if weight.is_stored(name)]


def _unit_bytes(source: Source, unit: Unit) -> int:
    return sum(
        source.checkpoint.tensors[name].nbytes for name in source.stored_names(unit.parameter, unit.expert)
    )


def _read_bytes(source: Source, shard: Shard) -> int:
    return sum(_unit_bytes(source, unit) for unit in shard.units)


def _write_index(layout: Layout, folder: Path) -> None:
    places = {piece.name: shard.file for shard in layout.shards for piece in shard.pieces}
    index = {"metadata": {"total_size": layout.nbytes}, "weight_map": dict(sorted(places.items()))}
    write_json(folder / INDEX, index)

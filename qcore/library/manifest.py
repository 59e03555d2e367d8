"""qcore.json, the manifest of a saved model: recipe, ledger, the format of each quantized matrix, the SHA-256
of each weight file.

It is untrusted, and native code reads the weights by its description. So `read` validates its form, and
`check` compares it with the model's shapes and the headers of the weight files: each tensor of the
description must exist with the dtype and shape of its format, and no other tensor may. Both raise
`InputError` before memory is allocated or weights are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.base.tensor_file import stored_name
from qcore.formats.budget import Budget
from qcore.formats.kinds import KINDS, Format, packed_width
from qcore.formats.kinds import from_dict as read_format
from qcore.formats.mixture import Mixture
from qcore.layers.inventory import inventory
from qcore.layers.select import Target, select
from qcore.layers.text_part import text_part
from qcore.library.saving import MANIFEST
from qcore.library.sparse import MASK, VALUES, SparseMatrix
from qcore.models.checkpoint import SINGLE
from qcore.models.headers import BITS, TensorInfo, is_file_name, read_json
from qcore.recipes import Float, Recipe
from qcore.recipes.ledger import Ledger

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
_SHA256 = re.compile("[0-9a-f]{64}")
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix: the `module` that holds it, the module under whose name its parts are stored
    (`like`, which differs for shared parts), its shape (N outputs, K inputs) and its format."""

    module: str
    like: str
    shape: tuple[int, int]
    format: Format

    def to_dict(self) -> dict:
        """Return the JSON-ready form."""
        return {
            "module": self.module,
            "like": self.like,
            "shape": list(self.shape),
            "format": self.format.to_dict(),
        }


@dataclass(frozen=True)
class Manifest:
    """The checked content of a qcore.json. `matrices` by module; `sha256` by file."""

    recipe: Recipe
    ledger: Ledger
    matrices: dict[str, Matrix]
    sparse: tuple[SparseMatrix, ...]
    sha256: dict[str, str]


def read(folder: Path) -> Manifest:
    """Return the manifest in `folder`. Raise `InputError` if it is missing, damaged, of another version, or
    has invalid content."""
    try:
        record = read_json(folder / MANIFEST)
        version = record["version"]
    except (InputError, KeyError) as error:
        why = "it has no version" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise InputError(
            f"{folder} is not a model saved by qcore: {MANIFEST} cannot be read ({why})."
        ) from error
    if version != VERSION:
        raise InputError(
            f"{folder} was saved in version {version} of the format; this qcore reads version {VERSION}."
        )
    try:
        matrices = [_matrix(entry) for entry in _list(record["tensors"])]
        return Manifest(
            recipe=read_recipe(record["recipe"]),
            ledger=read_ledger(record["ledger"]),
            matrices=_by_module(matrices),
            sparse=tuple(_sparse(entry) for entry in _list(record.get("sparse", []))),
            sha256=read_digests(
                {SINGLE: record["sha256"]} if isinstance(record["sha256"], str) else record["sha256"],
                lambda file: file.endswith(".safetensors"),
            ),
        )
    except KeyError as error:
        raise damaged(f"it has no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise damaged(str(error).rstrip(".")) from error


def check(manifest: Manifest, model: PreTrainedModel, stored: Mapping[str, TensorInfo]) -> None:
    """Raise `InputError` unless `manifest` fits the unquantized `model`, which may be on the meta device, and
    the `stored` tensors by name."""
    if set(manifest.sha256) != {tensor.file for tensor in stored.values()}:
        raise damaged("its list of weight files differs from the folder")
    targets = targets_of(manifest, model)
    _check_matrices(manifest, model, targets)
    _check_stored(manifest, model, {target.name for target in targets}, stored)
    _check_ledger(manifest, model, targets, stored)


def targets_of(manifest: Manifest, model: PreTrainedModel) -> tuple[Target, ...]:
    """Return the parameters of the unquantized `model` that the folder holds quantized. Folders of 0.1.0 hold
    scaled embeddings, such as Gemma's, in full, and gates of experts quantized."""
    if isinstance(manifest.recipe.weights, Float):
        return ()
    return tuple(
        target
        for target in select(model, manifest.recipe, stored=manifest.matrices).targets
        if target.kind != "embedding"
        or target.module in manifest.matrices
        or type(target.owner(model)) is nn.Embedding
    )


def read_ledger(record: dict) -> Ledger:
    """Return the ledger in `record`. Raise `InputError` or `ValueError` if a field is not of the type, or a
    number not of the size, that qcore writes."""
    ledger = Ledger.from_dict(record)
    for row in ledger.rows:
        texts = (row.name, row.dtype, row.format or "", row.reason or "")
        counts = (*row.shape, row.bytes_before, row.bytes_after, row.weights)
        if not all(isinstance(text, str) for text in texts) or type(row.intended) is not bool:
            raise ValueError(f"its ledger's row {str(row.name)[:40]!r} has a field that is not a text")
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"its ledger's row {row.name!r} has a field that is not a count")
        if row.sparsity is not None and not (type(row.sparsity) in (int, float) and 0 <= row.sparsity <= 1):
            raise ValueError(f"its ledger's row {row.name!r} has the sparsity {row.sparsity!r}")
    extra = (ledger.calibration, ledger.allocation, ledger.training, ledger.pruning)
    if not isinstance(ledger.recipe, str) or not all(isinstance(each, dict | None) for each in extra):
        raise ValueError("its ledger has a record that cannot be read")
    return ledger


def stems(model: nn.Module, target: Target) -> list[str]:
    """Return the names, in order, under which the matrices of a target are listed: its module, or one for
    each expert."""
    if not target.fused:
        return [target.module]
    return [f"{target.name}.experts.{i}" for i in range(target.shape(model)[0])]


def damaged(why: str) -> InputError:
    """Return the error for an invalid manifest."""
    return InputError(f"{MANIFEST} is damaged: {why}. Quantize the model again, or download it again.")


# -- its own form --------------------------------------------------------------------------------------------


def read_recipe(record: dict, kinds: tuple[type, ...] = (Float, Format, Mixture, Budget)) -> Recipe:
    """Return the recipe in `record`, whose weights are of one of the `kinds`. Raise `InputError` or
    `ValueError` if a field is not of the type that qcore writes."""
    recipe = Recipe.from_dict(record)
    if not isinstance(recipe.weights, kinds):
        raise ValueError(f"models of the recipe {recipe.name!r} are never saved in this form")
    if isinstance(recipe.weights, Format):
        _format(record["weights"])
    if isinstance(recipe.weights, Budget):
        for candidate in record["weights"].get("candidates", ()):
            _format(candidate)
    for text in (recipe.name, recipe.method, *_list(list(recipe.modules.skip))):
        _text(text)
    return recipe


def _matrix(entry: dict) -> Matrix:
    shape = _list(entry["shape"])
    if len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{entry['module']!r} has the impossible shape {shape!r}")
    return Matrix(_text(entry["module"]), _text(entry["like"]), tuple(shape), _format(entry["format"]))


def _format(record: dict) -> Format:
    """Return the format described by `record`, after a check of the types of its fields."""
    format = read_format(record)
    types = get_type_hints(KINDS[format.TYPE])
    for field in fields(format):
        value = getattr(format, field.name)
        if type(value) not in (get_args(types[field.name]) or (types[field.name],)):
            raise ValueError(f"the format's {field.name} is {value!r}")
    return format


def _by_module(matrices: list[Matrix]) -> dict[str, Matrix]:
    found = {matrix.module: matrix for matrix in matrices}
    if len(found) < len(matrices):
        raise ValueError("a module occurs twice")
    for matrix in matrices:
        owner = found.get(matrix.like)
        if owner is None or (owner.like, owner.shape, owner.format) != (
            matrix.like,
            matrix.shape,
            matrix.format,
        ):
            raise ValueError(
                f"{matrix.module} shares the parts of {matrix.like}, which has another shape or format"
            )
    return found


def _sparse(entry: dict) -> SparseMatrix:
    for name in ("columns", "bits"):
        if type(entry[name]) is not int or entry[name] < 1:
            raise ValueError(f"{entry['name']!r} has {name} = {entry[name]!r}")
    module = entry.get("module")
    return SparseMatrix(_text(entry["name"]), entry["columns"], entry["bits"], module and _text(module))


def read_digests(record: object, is_weights: Callable[[str], bool]) -> dict[str, str]:
    """Return {file: SHA-256} if `record` is one; `is_weights` tests for the name of a weight file. Raise
    `ValueError` if not."""
    if not isinstance(record, dict) or not record:
        raise ValueError("it has no SHA-256 of the weights")
    for file, digest in record.items():
        if not is_file_name(file) or not is_weights(file):
            raise ValueError(f"{file!r} is not the name of a weight file beside it")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"the SHA-256 of {file} is {digest!r}")
    return record


def _list(value: object) -> list:
    if not isinstance(value, list):
        raise ValueError(f"it has {type(value).__name__} {str(value)[:40]!r} instead of a list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"it has {value!r} instead of a name")
    return value


# -- against the model and the files -------------------------------------------------------------------------


def _check_matrices(manifest: Manifest, model: nn.Module, targets: tuple[Target, ...]) -> None:
    """Check that the listed matrices are those of the recipe's targets, in shape and format."""
    expected = set()
    for target in targets:
        _, *shape = target.shape(model)
        for stem in stems(model, target):
            expected.add(stem)
            matrix = manifest.matrices.get(stem)
            if matrix is None:
                raise damaged(f"it does not list {stem}, which the recipe {manifest.recipe.name} quantizes")
            if matrix.shape != tuple(shape):
                raise damaged(f"{stem} has the shape {matrix.shape}, but the model has {tuple(shape)}")
            if not isinstance(target.format, Budget) and matrix.format != target.format:
                raise damaged(
                    f"{stem} is in {matrix.format.label}, but the recipe {manifest.recipe.name} has "
                    f"{target.format.label}"
                )
    if extra := sorted(set(manifest.matrices) - expected):
        raise damaged(f"it lists {extra[0]}, which the recipe {manifest.recipe.name} does not quantize")


def _check_stored(
    manifest: Manifest, model: PreTrainedModel, quantized: set[str], stored: Mapping[str, TensorInfo]
) -> None:
    """Check that all tensors of the model, and no others, are stored with the right dtype and shape."""
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}  # name -> possible dtypes, shape
    optional: set[str] = set()
    text = text_part(model)
    for name, tensor, shared in inventory(model):
        if name in quantized:
            continue
        narrow = isinstance(manifest.recipe.weights, Float) or text.tower_of(name) is not None
        expected[name] = (_dtypes(tensor, narrow), tuple(tensor.shape))
        optional |= {name} if shared else set()
    for matrix in manifest.matrices.values():
        if matrix.like == matrix.module:
            for part, (dtype, shape) in matrix.format.layout(*matrix.shape).items():
                expected[f"{matrix.module}.{part}"] = ((stored_name(getattr(torch, dtype)),), shape)
    for entry in manifest.sparse:
        expected.update(_sparse_parts(manifest, entry, expected))
    for name, (dtypes, shape) in expected.items():
        found = stored.get(name)
        if found is None:
            if name in optional:
                continue
            raise damaged(f"the weight files have no {name}, which it needs")
        fits = found.shape == shape or (shape == (-1,) and len(found.shape) == 1)
        if found.dtype not in dtypes or not fits:
            raise damaged(
                f"{name} is stored as {found.dtype} {found.shape}, but should be {' or '.join(dtypes)} "
                f"{shape}"
            )
    if extra := sorted(set(stored) - set(expected)):
        raise damaged(f"the weight files have {extra[0]}, which has no place in the model")


def _dtypes(tensor: torch.Tensor, narrow: bool) -> tuple[str, ...]:
    """Return the types in which a file may hold `tensor`; with `narrow` also in 16 bits."""
    own = stored_name(tensor.dtype)
    return _FLOATS if narrow and own in _FLOATS else (own,)


def _sparse_parts(
    manifest: Manifest, entry: SparseMatrix, expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]
) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
    """Remove the matrix of a sparse entry from `expected`, and yield the tensors stored instead."""
    dtypes, shape = expected.pop(entry.name, ((), ()))
    if entry.module is None:
        fits = len(shape) == 2 and shape[1] == entry.columns and set(dtypes) <= set(_FLOATS)
        dtypes = tuple(dtype for dtype in dtypes if BITS[dtype] == entry.bits)
    else:
        matrix = manifest.matrices.get(entry.module)
        fits = (
            matrix is not None
            and entry.name == f"{matrix.like}.codes"
            and (entry.columns, entry.bits) == (matrix.shape[1], matrix.format.bits)
            and not matrix.format.learned
        )
    if not fits or not dtypes:
        raise damaged(f"{entry.name} has an invalid entry for sparse storage")
    yield f"{entry.name}.{MASK}", (("U8",), (shape[0], packed_width(entry.columns, 1)))
    yield f"{entry.name}.{VALUES}", (dtypes, (-1,))  # as many as there are bits in the mask


def _check_ledger(
    manifest: Manifest, model: nn.Module, targets: tuple[Target, ...], stored: Mapping[str, TensorInfo]
) -> None:
    """Check that the ledger lists this model's tensors with the bytes of the files."""
    ledger = manifest.ledger
    if ledger.recipe != manifest.recipe.name:
        raise damaged(f"its ledger is that of {ledger.recipe!r}, its recipe is {manifest.recipe.name}")
    shapes = {name: tuple(tensor.shape) for name, tensor, _ in inventory(model)}
    rows = {row.name: row for row in ledger.rows}
    if set(rows) != set(shapes) or len(rows) < len(ledger.rows):
        raise damaged("its ledger lists tensors that differ from the model's")
    for row in ledger.rows:
        if row.shape != shapes[row.name]:
            raise damaged(
                f"its ledger has {row.name} in the shape {row.shape}, the model in {shapes[row.name]}"
            )
        dtype = getattr(torch, row.dtype, None)
        whole = math.prod(row.shape)
        if (
            not isinstance(dtype, torch.dtype)
            or row.weights != whole
            or row.bytes_before not in (0, whole * dtype.itemsize)
        ):
            raise damaged(f"its ledger has bytes of {row.name} that do not fit its shape and dtype")
    for target in targets:
        label = manifest.matrices[stems(model, target)[0]].format.label
        if rows[target.name].format != label:
            raise damaged(
                f"its ledger has {target.name} in {rows[target.name].format}, the weight files in {label}"
            )
    held = sum(tensor.nbytes for tensor in stored.values())
    if ledger.stored_bytes not in (held, held + _left_out(manifest, stored)):
        raise damaged(f"its ledger counts {ledger.stored_bytes} bytes, but the weight files hold {held}")


def _left_out(manifest: Manifest, stored: Mapping[str, TensorInfo]) -> int:
    """Return the bytes saved by sparse storage: a ledger may count matrices in their dense form."""
    saved = 0
    for entry in manifest.sparse:
        mask, values = stored[f"{entry.name}.{MASK}"], stored[f"{entry.name}.{VALUES}"]
        row = packed_width(entry.columns, entry.bits) if entry.module else entry.columns * entry.bits // 8
        saved += mask.shape[0] * row - mask.nbytes - values.nbytes
    return saved

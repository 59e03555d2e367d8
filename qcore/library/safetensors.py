"""Save a quantized model as safetensors, and load it again bit for bit.

A folder holds what a Hugging Face checkpoint holds (`config.json`, tokenizer, `model.safetensors`) plus
`qcore.json`: the recipe, the ledger, the format of each quantized tensor, and the SHA-256 of the weights,
which is checked at load. No file is pickled. `qcore.streaming` writes large models as several files with an
index, as on the hub; each file has its own SHA-256. Quantized weights are stored as the parts of a
`QuantizedTensor`, such as `model.layers.0.mlp.up_proj.codes`; in a mixture of experts each expert's parts are
stored separately, such as `model.layers.0.mlp.experts.down_proj.experts.3.codes`.

Other libraries must refuse such a folder: its `config.json` has `"quant_method": "qcore"`. transformers loads
it once `import qcore` has run, see `in_transformers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qcore.base import tensor_file
from qcore.base.errors import InputError
from qcore.base.files import sha256, write_json, write_text
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.inventory import dtype_name, inventory, plain_name
from qcore.layers.modules import QuantizedModule
from qcore.layers.select import Target
from qcore.library import manifest
from qcore.library.finite import require_finite
from qcore.library.manifest import Manifest, Matrix
from qcore.library.saving import MANIFEST, check_folder, replaced_folder
from qcore.library.sparse import MASK, SparseMatrix, grow, shrink
from qcore.models.assembly import empty_model
from qcore.models.config import NEEDED, OURS, read_config, to_text, to_transformers
from qcore.models.config_limits import check_against
from qcore.models.headers import TensorInfo, read_header
from qcore.models.mapping import aligned, read_file
from qcore.quantization.convert import install, quantize, run_whole_steps
from qcore.quantization.narrow import DTYPES
from qcore.recipes import Engine, Float, Recipe
from qcore.recipes.ledger import Ledger

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: Recipe,
    ledger: Ledger,
    folder: Path | str,
    *,
    overwrite: bool = False,
    sparse: Set[str] = frozenset(),
    origin: dict | None = None,
) -> Path:
    """Write `model`, to which `recipe` was applied with the result `ledger`, into a new `folder`, and return
    it. Tensors named in `sparse` are stored without their zeros where that is smaller, see `sparse.py`.
    `origin` records the original model.

    All files are written to a temporary folder, which is then renamed, so a partial model is never visible.
    Raise `InputError` as `check_target` does.
    """
    check_recipe(recipe)
    with replaced_folder(Path(folder), overwrite=overwrite) as scratch:
        tensors, layout = _tensors(model, recipe)
        entries: list[SparseMatrix] = []
        if sparse:
            quantized = {
                name: module.quantized
                for name, module in model.named_modules()
                if isinstance(module, QuantizedModule)
            }
            tensors, entries = shrink(tensors, quantized, set(sparse))
        digest = tensor_file.write(tensors, scratch / WEIGHTS)
        write_about(
            model,
            tokenizer,
            recipe,
            ledger,
            layout,
            {WEIGHTS: digest},
            scratch,
            sparse=entries,
            origin=origin,
        )
    return Path(folder)


def write_about(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: Recipe,
    ledger: Ledger,
    layout: list[dict],
    digests: dict[str, str],
    folder: Path,
    *,
    sparse: Sequence[SparseMatrix] = (),
    origin: dict | None = None,
) -> None:
    """Write everything but the weights into `folder`: config (of `model`, a meta model will do), tokenizer,
    and the manifest with the SHA-256 of each weight file, `digests`, the list of what is stored `sparse`, and
    the `origin`."""
    _write_config(model, recipe, folder, ours=bool(sparse))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    record = {
        "version": manifest.VERSION,
        "recipe": recipe.to_dict(),
        "ledger": ledger.to_dict(),
        "tensors": layout,
    }
    if sparse:
        record["sparse"] = [matrix.to_dict() for matrix in sparse]
    if origin:
        record["from"] = origin
    record["sha256"] = digests[WEIGHTS] if set(digests) == {WEIGHTS} else digests
    write_json(folder / MANIFEST, record)


def check_recipe(recipe: Recipe) -> None:
    """Raise `InputError` if models of `recipe` cannot be saved, because another library quantizes them."""
    if isinstance(recipe.weights, Engine):
        raise InputError(
            f"{recipe.name} is another library's format: qcore can compare it, but not save it. Choose one "
            "of qcore's own."
        )


def check_target(recipe: Recipe, folder: Path | str, *, overwrite: bool = False) -> Path:
    """Return the absolute path at which a model of `recipe` will be saved. Raise `InputError` as
    `check_recipe` and `check_folder` do."""
    check_recipe(recipe)
    return check_folder(folder, overwrite=overwrite)


def load(folder: Path | str) -> tuple[PreTrainedModel, Ledger, Recipe]:
    """Rebuild the model in `folder`, its ledger and its recipe; weights are mapped from the file, not copied.

    Raise `InputError` if qcore did not write the folder, it is damaged, or a later version wrote it.
    """
    return begin(folder).finish()


def begin(folder: Path | str) -> Reading:
    """Start to `load` a model: read the manifest and the headers, and compute the SHA-256 of the weights in a
    thread, so that the caller can do other work before `finish`. Raise `InputError` as `load`."""
    folder = Path(folder)
    about = manifest.read(folder)
    stored: dict[str, TensorInfo] = {}
    for file in about.sha256:
        for name, tensor in read_header(folder / file).items():
            if name in stored:
                raise manifest.damaged(f"the tensor {name!r} is in both {stored[name].file} and {file}")
            stored[name] = tensor
    pool = ThreadPoolExecutor(1, "sha256")
    digests = {file: pool.submit(sha256, folder / file) for file in about.sha256}
    pool.shutdown(wait=False)
    return Reading(folder, about, stored, digests)


@dataclass(frozen=True)
class Reading:
    """A saved model that is being loaded: its manifest, the headers of its tensors, and the pending SHA-256
    of each weight file."""

    folder: Path
    manifest: Manifest
    stored: dict[str, TensorInfo]
    digests: dict[str, Future]

    def finish(self) -> tuple[PreTrainedModel, Ledger, Recipe]:
        """Return the model, its ledger and its recipe. Raise `InputError` as `load` does."""
        model = self._empty_model()
        self.check(model)
        self.fill(model)
        return model.eval(), self.manifest.ledger, self.manifest.recipe

    def check(self, model: PreTrainedModel) -> tuple[Target, ...]:
        """Return the parameters of the unquantized `model`, on the meta device, whose weights are stored
        quantized. Raise `InputError` if the stored tensors do not fit it."""
        manifest.check(self.manifest, model, self.stored)
        return manifest.targets_of(self.manifest, model)

    def fill(self, model: PreTrainedModel, *, widen: bool = False) -> None:
        """Put the stored tensors into `model`, which `check` has accepted. Towers keep the 16 bits that they
        may be stored in, unless they are to be used (`widen`). Raise `InputError` as `load` does."""
        about, tensors = self.manifest, self._tensors()
        for name, tensor in tensors.items():
            require_finite(name, tensor)
        if about.sparse:
            codeless = {name: _without_codes(matrix, tensors) for name, matrix in about.matrices.items()}
            tensors = grow(tensors, about.sparse, codeless)
        _fill(model, tensors, about, widen)
        if isinstance(about.recipe.weights, Float):
            quantize(model, about.recipe)
        else:
            run_whole_steps(model)

    def _empty_model(self) -> PreTrainedModel:
        """Return the model of the config, after a check that the stored tensors can fill it."""
        config = read_config(self.folder)[0]
        shapes = {name: tensor.shape for name, tensor in self.stored.items()}
        shapes |= {name: matrix.shape for name, matrix in self.manifest.matrices.items()}
        shapes |= {
            entry.name: (self.stored[f"{entry.name}.{MASK}"].shape[0], entry.columns)
            for entry in self.manifest.sparse
            if f"{entry.name}.{MASK}" in self.stored
        }
        check_against(config, {name: TensorInfo("F32", shape, 0, "", 0) for name, shape in shapes.items()})
        try:
            return empty_model(to_transformers(config))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # model classes may raise anything for an invalid config
            raise InputError(f"{self.folder} does not fit its config.json: {error}") from error

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return all stored tensors by name, mapped, after a check of the SHA-256 of their files."""
        tensors: dict[str, torch.Tensor] = {}
        for file, digest in self.digests.items():
            weights = self.folder / file
            members = {name: tensor for name, tensor in self.stored.items() if tensor.file == file}
            try:
                if digest.result() != self.manifest.sha256[file]:
                    raise InputError(
                        f"{weights} is damaged: its SHA-256 is not the one it was saved with. Quantize the "
                        "model again."
                    )
                tensors |= read_file(weights, members)
            except OSError as error:
                raise InputError(f"{weights} cannot be read: {error.strerror or error}.") from error
        return tensors


# -- writing -------------------------------------------------------------------------------------------------


def _tensors(model: PreTrainedModel, recipe: Recipe) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Return all tensors to write, by name, and the layout of the quantized ones. Shared storages are written
    once."""
    tensors = {
        plain_name(name): tensor.detach().contiguous()
        for name, tensor, shared in inventory(model)
        if not shared
    }
    layout: list[dict] = []
    owners: dict[int, str] = {}
    for module_name, module in model.named_modules():
        weight = getattr(module, "quantized", None)
        if not isinstance(weight, QuantizedTensor):
            continue
        owner = owners.setdefault(weight.codes.data_ptr(), module_name)
        layout.append(Matrix(module_name, owner, weight.shape, weight.format).to_dict())
    return tensors, layout


def _write_config(model: PreTrainedModel, recipe: Recipe, folder: Path, ours: bool) -> None:
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = (
        dtype_name(DTYPES[recipe.weights.dtype]) if isinstance(recipe.weights, Float) else "float32"
    )
    if ours or not isinstance(recipe.weights, Float):
        config["quantization_config"] = {"quant_method": OURS, "recipe": recipe.name}
        config["transformers_weights"] = NEEDED
    write_text(folder / "config.json", to_text(config))
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


# -- reading -------------------------------------------------------------------------------------------------


def _fill(model: PreTrainedModel, tensors: dict[str, torch.Tensor], about: Manifest, widen: bool) -> None:
    """Put `tensors` into `model`: first the plain ones, then, after tying, the quantized ones."""
    parts = {f"{module}.{part}" for module in about.matrices for part in QuantizedTensor.PARTS}
    plain = {name: aligned(tensor) for name, tensor in tensors.items() if name not in parts}
    if widen or isinstance(about.recipe.weights, Float):
        plain = {
            name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
            for name, tensor in plain.items()
        }
    for name, _, shared in inventory(model):  # tied weights are stored once, under either name
        if shared and plain_name(shared) in plain:
            plain[plain_name(name)] = plain[plain_name(shared)]
    model.load_state_dict(plain, strict=False, assign=True)  # names and shapes were compared by `check`
    model.tie_weights()
    for target in manifest.targets_of(about, model):
        names = manifest.stems(model, target)
        install(model, target, [_read_matrix(about.matrices[name], tensors) for name in names])


def _without_codes(matrix: Matrix, tensors: dict[str, torch.Tensor]) -> QuantizedTensor:
    """Return the scales and zero points of a matrix whose codes are not yet assembled."""
    return _read_matrix(matrix, {**tensors, f"{matrix.like}.codes": torch.empty(0, dtype=torch.uint8)})


def _read_matrix(matrix: Matrix, tensors: dict[str, torch.Tensor]) -> QuantizedTensor:
    wanted = [(part, f"{matrix.like}.{part}") for part in QuantizedTensor.PARTS]
    parts = {part: tensors[name] for part, name in wanted if name in tensors}
    if (table := matrix.format.fixed) is not None:
        parts["codebook"] = table
    return QuantizedTensor(matrix.format, matrix.shape, **parts)

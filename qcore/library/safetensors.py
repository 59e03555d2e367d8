"""Save a quantized model as safetensors, and load it again with the very same bits.

A folder holds what a Hugging Face checkpoint holds (`config.json`, tokenizer, `model.safetensors`) plus
`qcore.json`: the recipe, the ledger, the format of each quantized tensor, and the SHA-256 of the weights,
which is checked at load. Nothing in it is pickled. Large models, which `qcore.streaming` writes, are cut into
several files with an index, as the hub's are; each has its own SHA-256. Quantized weights are stored as the
parts of a `QuantizedTensor`, such as `model.layers.0.mlp.up_proj.codes`; for a mixture of experts each
expert's parts stand apart, such as `model.layers.0.mlp.experts.down_proj.experts.3.codes`.

Other libraries refuse such a folder, rightly: its `config.json` says `"quant_method": "qcore"`.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.formats import kinds
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.inventory import dtype_name, inventory, plain_name
from qcore.layers.modules import QuantizedModule
from qcore.layers.select import Target, select
from qcore.library import tensor_file
from qcore.library.saving import MANIFEST, check_folder, replaced_folder
from qcore.library.sparse import grow, shrink
from qcore.models.config import read_config, to_transformers
from qcore.models.headers import read_header
from qcore.models.mapping import read_file
from qcore.quantization.convert import DTYPES, install, quantize, run_whole_steps
from qcore.recipes import Engine, Float, Recipe
from qcore.recipes.ledger import Ledger

WEIGHTS = "model.safetensors"
_VERSION = 1
_WINDOW = 256 << 20  # bytes, a multiple of the page size


def save(
    model: nn.Module,
    tokenizer,
    recipe: Recipe,
    ledger: Ledger,
    folder: Path | str,
    *,
    overwrite: bool = False,
    sparse: Set[str] = frozenset(),
    origin: dict | None = None,
) -> Path:
    """Write `model`, to which `recipe` was applied with the result `ledger`, into a new `folder`, and return
    it. Tensors called as in `sparse` are stored without their zeros where that is smaller, see `sparse.py`.
    `origin` says what it was made from.

    Everything is written to a temporary folder first and then renamed, so that no half-written model is ever
    found. Raises `InputError` as `check_target` does.
    """
    check_recipe(recipe)
    with replaced_folder(Path(folder), overwrite=overwrite) as scratch:
        tensors, layout = _tensors(model, recipe)
        entries = []
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
    model: nn.Module,
    tokenizer,
    recipe: Recipe,
    ledger: Ledger,
    layout: list[dict],
    digests: dict[str, str],
    folder: Path,
    *,
    sparse: Sequence[dict] = (),
    origin: dict | None = None,
) -> None:
    """Write everything but the weights into `folder`: config (of `model`, a skeleton will do), tokenizer, and
    the manifest with the SHA-256 of each weight file, `digests`, the list of what is stored `sparse`, and the
    `origin`."""
    _write_config(model, recipe, folder, ours=bool(sparse))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    record = {"version": _VERSION, "recipe": recipe.to_dict(), "ledger": ledger.to_dict(), "tensors": layout}
    record |= ({"sparse": list(sparse)} if sparse else {}) | ({"from": origin} if origin else {})
    record["sha256"] = digests[WEIGHTS] if set(digests) == {WEIGHTS} else digests
    (folder / MANIFEST).write_text(json.dumps(record))


def check_recipe(recipe: Recipe) -> None:
    """Raise `InputError` if models of `recipe` cannot be saved, because it is another library's."""
    if isinstance(recipe.weights, Engine):
        raise InputError(
            f"{recipe.name} is another library's format: qcore can compare it, but not save it. Choose one of qcore's own."
        )


def check_target(recipe: Recipe, folder: Path, *, overwrite: bool = False) -> None:
    """Raise `InputError` if a model of `recipe` cannot be saved into `folder`: see `check_recipe` and
    `check_folder`."""
    check_recipe(recipe)
    check_folder(folder, overwrite=overwrite)


def load(folder: Path | str) -> tuple[nn.Module, Ledger, Recipe]:
    """Rebuild the model in `folder`, its ledger and its recipe; weights are mapped from the file, not copied.

    Raises `InputError` if the folder is not one of ours, is damaged, or was written by a later version.
    """
    return begin(folder).finish()


def begin(folder: Path | str) -> "Reading":
    """`load` in two steps: the check of the weights' SHA-256 runs in a thread from here on, so do something
    else before `finish`."""
    folder = Path(folder)
    record = read_manifest(folder)
    files = record["sha256"] if isinstance(record["sha256"], dict) else [WEIGHTS]
    pool = ThreadPoolExecutor(1, "sha256")
    digests = {file: pool.submit(_sha256, folder / file) for file in files}
    pool.shutdown(wait=False)
    return Reading(folder, record, digests)


@dataclass(frozen=True)
class Reading:
    """A saved model that is being read: what its `qcore.json` says, and the SHA-256 of each weight file,
    which is being computed."""

    folder: Path
    record: dict
    digests: dict[str, Future]

    def finish(self) -> tuple[nn.Module, Ledger, Recipe]:
        """The model, its ledger and its recipe. Raises `InputError` as `load` does."""
        recipe, ledger = Recipe.from_dict(self.record["recipe"]), Ledger.from_dict(self.record["ledger"])
        model, tensors, saved = _skeleton(self.folder), {}, self.record["sha256"]
        for file, digest in self.digests.items():
            weights = self.folder / file
            if digest.result() != (saved[file] if isinstance(saved, dict) else saved):
                raise InputError(
                    f"{weights} is damaged: its SHA-256 is not the one it was saved with. Quantize the model again."
                )
            try:
                tensors |= read_file(weights, read_header(weights))
            except OSError as error:
                raise InputError(f"{weights} cannot be read: {error}.") from error
        if sparse := self.record.get("sparse"):
            tensors = grow(
                tensors,
                sparse,
                {entry["module"]: _without_codes(entry, tensors) for entry in self.record["tensors"]},
            )
        _fill(model, tensors, recipe, self.record["tensors"])
        if isinstance(recipe.weights, Float):
            quantize(model, recipe)
        else:
            run_whole_steps(model)
        return model.eval(), ledger, recipe


def read_manifest(folder: Path) -> dict:
    """The parsed `qcore.json` of a saved model. Raises `InputError` if it is missing, unreadable or of a
    later version."""
    try:
        record = json.loads((folder / MANIFEST).read_text())
        version = record["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is not a model saved by qcore: {MANIFEST} cannot be read ({error})."
        ) from error
    if version != _VERSION:
        raise InputError(
            f"{folder} was saved in version {version} of the format; this qcore reads version {_VERSION}."
        )
    return record


# -- writing -------------------------------------------------------------------------------------------------


def _tensors(model: nn.Module, recipe: Recipe) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """All tensors to write, by name, and the layout of the quantized ones. Shared storages are written
    once."""
    tensors = {
        plain_name(name): tensor.detach().contiguous()
        for name, tensor, shared in inventory(model)
        if not shared
    }
    layout, owners = [], {}
    for module_name, module in model.named_modules():
        weight = getattr(module, "quantized", None)
        if not isinstance(weight, QuantizedTensor):
            continue
        owner = owners.setdefault(weight.codes.data_ptr(), module_name)
        layout.append(
            {
                "module": module_name,
                "like": owner,
                "shape": list(weight.shape),
                "format": weight.format.to_dict(),
            }
        )
    return tensors, layout


def _write_config(model: nn.Module, recipe: Recipe, folder: Path, ours: bool) -> None:
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = (
        dtype_name(DTYPES[recipe.weights.dtype]) if isinstance(recipe.weights, Float) else "float32"
    )
    if ours or not isinstance(recipe.weights, Float):
        config["quantization_config"] = {"quant_method": "qcore", "recipe": recipe.name}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _sha256(path: Path) -> str:
    """Digest of a file, read through maps of `_WINDOW` bytes: one call a window, during which other threads
    run undisturbed."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for start in range(0, size := os.fstat(file.fileno()).st_size, _WINDOW):
                with mmap.mmap(
                    file.fileno(), min(_WINDOW, size - start), access=mmap.ACCESS_READ, offset=start
                ) as window:
                    digest.update(window)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


# -- reading -------------------------------------------------------------------------------------------------


def _skeleton(folder: Path) -> nn.Module:
    """The model with memory reserved but not touched: every weight is put in its place afterwards."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = to_transformers(read_config(folder)[0])
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], recipe: Recipe, layout: list[dict]) -> None:
    """Put `tensors` into `model`: the plain ones first, then (ties being made) the quantized ones."""
    quantized = {entry["module"]: entry for entry in layout}
    plain = {name: _aligned(tensor) for name, tensor in tensors.items() if not _belongs(name, quantized)}
    if isinstance(recipe.weights, Float):
        plain = {
            name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
            for name, tensor in plain.items()
        }
    targets = [] if isinstance(recipe.weights, Float) else list(select(model, recipe).targets)
    try:
        missing = model.load_state_dict(plain, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise InputError(f"The saved weights do not fit the saved config: {error}.") from error
    model.tie_weights()
    known = {target.name for target in targets} | {name for name, _, shared in inventory(model) if shared}
    if lost := [name for name in missing if name not in known]:
        raise InputError(
            f"The saved model has no weights for {', '.join(lost[:3])}. Quantize the model again."
        )
    for target in targets:
        install(model, target, _read_target(target, tensors, quantized))


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, copied if it is mapped to an odd address: there, matrix products would round their last bit
    differently."""
    return tensor.clone() if tensor.data_ptr() % tensor_file.ALIGNMENT else tensor


def _belongs(name: str, quantized: dict[str, dict]) -> bool:
    module, _, part = name.rpartition(".")
    return module in quantized and part in QuantizedTensor.PARTS


def _read_target(
    target: Target, tensors: dict[str, torch.Tensor], quantized: dict[str, dict]
) -> list[QuantizedTensor]:
    prefix = f"{target.module}.{target.parameter}.experts." if target.fused else target.module
    modules = [name for name in quantized if name.startswith(prefix)] if target.fused else [prefix]
    return [_read_tensor(quantized[module], tensors) for module in modules]


def _without_codes(entry: dict, tensors: dict[str, torch.Tensor]) -> QuantizedTensor:
    """The scales and zero points of a tensor whose codes are yet to be put together."""
    return _read_tensor(entry, {**tensors, f"{entry['like']}.codes": torch.empty(0, dtype=torch.uint8)})


def _read_tensor(entry: dict, tensors: dict[str, torch.Tensor]) -> QuantizedTensor:
    format = kinds.from_dict(entry["format"])
    wanted = [(part, f"{entry['like']}.{part}") for part in QuantizedTensor.PARTS]
    parts = {part: tensors[name] for part, name in wanted if name in tensors}
    if (table := format.fixed) is not None:
        parts["codebook"] = table
    return QuantizedTensor(format, tuple(entry["shape"]), **parts)

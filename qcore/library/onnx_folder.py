"""A folder with a model as ONNX, which runs with ONNX Runtime alone, and in qcore's `eval` and `bench`.

    model.onnx, model.onnx.data    the graph and its weights, see `qcore.engines.onnx`
    run_onnx.py                    a program that needs onnxruntime and numpy (and tokenizers, to read text)
    config.json, tokenizer …       as in the original checkpoint
    qcore-onnx.json                recipe, ledger, SHA-256 of the files, deviation from PyTorch's logits

Before the folder gets its final name, the graph runs and its logits are compared with PyTorch's: for a prompt
at once, and for its end token by token through the cache. If both compute in float32, they must agree.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError, RunError
from qcore.base.files import sha256, write_json, write_text
from qcore.base.progress import Progress
from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.layers.modules import QuantLinear
from qcore.layers.positions import positions
from qcore.library import manifest
from qcore.library.exports import Exported, Target
from qcore.library.loading import Loaded
from qcore.library.parameters import LoadedParameters, Parameters
from qcore.library.saving import replaced_folder
from qcore.models.checkpoint import ONNX, Checkpoint
from qcore.models.checkpoint import ONNX_MANIFEST as MANIFEST
from qcore.models.config import read_config, to_text, to_transformers
from qcore.models.headers import read_json
from qcore.recipes import Engine, Float, Recipe, parse
from qcore.recipes.ledger import Ledger

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROGRAM, GRAPH = "run_onnx.py", "model.onnx"
TOLERANCE = 1e-3  # absolute tolerance for logits up to LARGE, relative beyond
LARGE = 10.0
PROMPT, DECODED = 40, 8
_VERSION = 1


@dataclass(frozen=True)
class Agreement:
    """The largest difference between a logit of ONNX Runtime and PyTorch's, reading `tokens` at once and
    writing the last `decoded` one by one; `largest` is the largest logit. `same_arithmetic`: both compute in
    float32, so that only rounding may differ."""

    prefill: float
    decode: float
    largest: float
    tokens: int
    decoded: int
    same_arithmetic: bool


def save(
    loaded: Loaded, recipe: Recipe, folder: Path, *, overwrite: bool = False, progress: Progress
) -> tuple[Ledger, Agreement]:
    """Export `loaded`, which is consumed, as `recipe` into `folder`; a model with qcore's codes keeps them.

    Raise `InputError` for a recipe or model without an ONNX form or a folder that is not empty, `RunError` if
    the logits of the exported graph differ from the model's.
    """
    from qcore.engines.onnx import run_onnx, writing
    from qcore.quantization.convert import quantize

    writing.source(recipe)
    with replaced_folder(folder, overwrite=overwrite) as scratch:
        config, generation = loaded.model.config.to_dict(), loaded.model.generation_config
        ids, wanted = _reference(loaded.model)
        written = writing.write(
            loaded.model,
            recipe,
            scratch,
            progress,
            quantize,
            None if loaded.ledger is None else loaded.ledger.rows,
        )
        calibration = loaded.ledger.calibration if loaded.ledger else None
        ledger = Ledger(recipe.name, written.rows, calibration).check()
        progress(0, 0, "comparing with PyTorch")
        exact = recipe.name != "onnx-int8" and recipe.activations != "int8-block"
        agreement = _compare(run_onnx.OnnxModel(written.path), ids, wanted, exact)
        config |= {"architectures": [type(loaded.model).__name__]}
        write_text(scratch / "config.json", to_text(config))
        generation.save_pretrained(scratch)
        loaded.tokenizer.save_pretrained(scratch)
        shutil.copyfile(run_onnx.__file__, scratch / PROGRAM)
        record = {
            "version": _VERSION,
            "recipe": recipe.to_dict(),
            "ledger": ledger.to_dict(),
            "agreement": asdict(agreement),
            "sha256": {path.name: sha256(path) for path in sorted(scratch.glob(f"{GRAPH}*"))},
            "from": loaded.checkpoint.origin,
        }
        write_json(scratch / MANIFEST, record)
    return ledger, agreement


def checkpoint(folder: Path, name: str, description: str) -> Checkpoint:
    """Return the exported model in `folder` as a checkpoint. Raise `InputError` if its manifest cannot be
    read."""
    record = _manifest(folder)
    config, _ = read_config(folder)
    digest = hashlib.sha256(json.dumps(record.sha256, sort_keys=True).encode()).hexdigest()
    return Checkpoint(
        name,
        folder,
        None,
        digest,
        config,
        {},
        True,
        f"{description} An ONNX graph, run by ONNX Runtime.",
        ONNX,
    )


def load(found: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Return the model of an exported folder, computed by ONNX Runtime. Raise `InputError` if a file is
    damaged, `UnavailableError` without ONNX Runtime."""
    from qcore import engines
    from qcore.models.assembly import empty_model

    engines.load("onnxruntime")
    from qcore.engines.onnx.attached import attach
    from qcore.engines.onnx.run_onnx import OnnxModel

    record = _manifest(found.folder)
    for file, digest in record.sha256.items():
        if sha256(found.folder / file) != digest:
            raise InputError(
                f"{found.folder / file} is damaged: its SHA-256 is not the one it was saved with. Export it "
                "again."
            )
    bare = empty_model(to_transformers(found.config), meta_buffers=True)
    model = attach(bare, OnnxModel(found.folder / GRAPH, torch.get_num_threads()))
    return Loaded(model, tokenizer, found, record.recipe, record.ledger)


class _Onnx(Target):
    """The target "onnx"."""

    name, streams = "onnx", False

    def available(self) -> None:
        """Raise `UnavailableError` without the ONNX packages."""
        from qcore import engines

        engines.load("onnxruntime")

    def source(self, recipe: Recipe) -> Recipe | None:
        """Raise `InputError` for a recipe without an ONNX form."""
        from qcore.engines.onnx import writing

        return writing.source(recipe)

    def save(
        self,
        parameters: Parameters,
        recipe: Recipe | None,
        folder: Path,
        *,
        overwrite: bool = False,
        progress: Progress,
    ) -> Exported:
        """Write the graph; see `save`."""
        if not isinstance(parameters, LoadedParameters):
            raise ValueError("a graph is traced from a model in memory")
        chosen = recipe or parameters.recipe or parse("fp32")
        ledger, agreement = save(parameters.loaded, chosen, folder, overwrite=overwrite, progress=progress)
        files = tuple(sorted(path.name for path in folder.glob(f"{GRAPH}*")))
        about = (ledger.stored_bytes, ledger.bits_per_weight, files)
        return Exported(chosen.name, *about, agreement=asdict(agreement))


TARGET = _Onnx()


@dataclass(frozen=True)
class _Manifest:
    """The checked content of a qcore-onnx.json. `sha256` by file."""

    recipe: Recipe
    ledger: Ledger
    sha256: dict[str, str]


def _manifest(folder: Path) -> _Manifest:
    """Return the manifest in `folder`. Raise `InputError` if it is missing, damaged, of another version, or
    has invalid content: it is untrusted."""
    try:
        record = read_json(folder / MANIFEST)
        if record["version"] != _VERSION:
            raise InputError(
                f"{folder} was exported in version {record['version']}; this qcore reads version {_VERSION}."
            )
        found = _Manifest(
            manifest.read_recipe(record["recipe"], (Float, Format, Budget, Engine)),
            manifest.read_ledger(record["ledger"]),
            manifest.read_digests(record["sha256"], lambda file: file.startswith(GRAPH)),
        )
        if found.ledger.recipe != found.recipe.name:
            raise ValueError(f"its ledger is that of {found.ledger.recipe!r}")
        present = {path.name: path.stat().st_size for path in folder.glob(f"{GRAPH}*")}
        if GRAPH not in found.sha256 or set(found.sha256) != set(present):
            raise ValueError("its list of files differs from the folder")
        if found.ledger.stored_bytes > sum(present.values()):
            raise ValueError("its ledger counts more bytes than the files hold")
    except KeyError as error:
        raise _damaged(folder, f"it has no {error}") from error
    except (OSError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(folder, str(error).rstrip(".")) from error
    return found


def _damaged(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder} is not a model exported by qcore: {MANIFEST} cannot be read ({why}). Export it again."
    )


@torch.no_grad()
def _reference(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random tokens (1, PROMPT) and the model's own logits (1, PROMPT, V) of them, with activations
    read exactly."""
    config = model.config.get_text_config()
    count = min(PROMPT, positions(config) or PROMPT)
    ids = torch.randint(config.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    before = [layer.activations for layer in layers]
    try:
        for layer in layers:
            layer.activations = "fp32"
        return ids, model(input_ids=ids, use_cache=False).logits.float()
    finally:
        for layer, activations in zip(layers, before, strict=True):
            layer.activations = activations


def _compare(session, ids: torch.Tensor, wanted: torch.Tensor, exact: bool) -> Agreement:
    numbers, tokens = ids.numpy(), ids.shape[1]
    decoded = min(DECODED, tokens - 1)
    whole, _ = session.step(numbers, None, torch.arange(tokens).numpy())
    _, cache = session.step(numbers[:, : tokens - decoded])
    decode = 0.0
    for place in range(tokens - decoded, tokens):
        logits, cache = session.step(numbers[:, place : place + 1], cache)
        decode = max(decode, float((torch.from_numpy(logits)[:, 0] - wanted[:, place]).abs().max()))
    prefill, largest = float((torch.from_numpy(whole) - wanted).abs().max()), float(wanted.abs().max())
    limit = TOLERANCE * max(1.0, largest / LARGE)
    if exact and not max(prefill, decode) <= limit:
        raise RunError(
            "The exported graph differs from the model: its logits differ by "
            f"{max(prefill, decode):.2g}, but rounding explains at most {limit:.2g}. Nothing was saved."
        )
    return Agreement(prefill, decode, largest, tokens, decoded, exact)

"""The parsers of untrusted input, each with the mutations of its files.

`Parser.open` imports what the parser needs, and returns a source of inputs and a function that parses one.
That function raises what the product's own functions raise, and `AssertionError` if what they accepted cannot
be true.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz import samples
from tests.fuzz.mutate import Bytes, Json, Mutator

Call = Callable[[bytes], object]


@dataclass(frozen=True)
class Parser:
    """`reads` names the function of the product that is called."""

    reads: str
    open: Callable[[Path], tuple[Mutator, Call]]


PARSERS: dict[str, Parser] = {}


def parser(name: str, reads: str):
    """Return a decorator that enters the function below it as the parser `name`."""

    def enter(function: Callable[[Path], tuple[Mutator, Call]]):
        PARSERS[name] = Parser(reads, function)
        return function

    return enter


@cache
def scratch() -> Path:
    """Return a folder in memory for this process."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="qcore-fuzz-", dir=memory))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder


class Slot:
    """A file whose content is replaced without a new name."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._file = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def put(self, content: bytes) -> Path:
        """Replace the content, and return the path."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, content, 0)
        return self.path


# -- weights


@parser("safetensors", "qcore.models.headers.read_header")
def _safetensors(folder: Path) -> tuple[Mutator, Call]:
    from qcore.models.headers import read_header

    slot = Slot(folder / "model.safetensors")

    def call(content: bytes) -> None:
        found = read_header(slot.put(content))
        start = 8 + int.from_bytes(content[:8], "little")
        assert sum(each.nbytes for each in found.values()) == len(content) - start
        assert all(
            each.start >= start and each.start + each.nbytes <= len(content) for each in found.values()
        )

    return Json([samples.HEADER], rest=bytes(48), header=True), call


@parser("index", "qcore.models.checkpoint.index_files")
def _index(folder: Path) -> tuple[Mutator, Call]:
    from qcore.models.checkpoint import INDEX, index_files

    slot = Slot(folder / "index" / INDEX)

    def call(content: bytes) -> None:
        slot.put(content)
        for file in index_files(slot.path.parent):
            assert file.endswith(".safetensors") and Path(file).name == file and len(file) < 256

    return Json([samples.INDEX]), call


@parser("gguf", "qcore.models.gguf_header.read, qcore.models.gguf_config.config_of")
def _gguf(folder: Path) -> tuple[Mutator, Call]:
    from qcore.models import gguf_config, gguf_header

    slot = Slot(folder / "model.gguf")

    def call(content: bytes) -> None:
        path = slot.put(content)
        gguf_header.check(path)
        header = gguf_header.read(path)
        for tensor in header.tensors:
            assert tensor.nbytes is None or tensor.start + tensor.nbytes <= len(content)
        assert isinstance(header.quantized_types, list)
        if gguf_config.knows(header):
            gguf_config.config_of(path, header)
        with path.open("rb") as file:
            gguf_header.texts(file, header, "tokenizer.ggml.tokens")
        gguf_header.write_small(path, header, folder / "small.gguf")

    return Bytes([samples.gguf_model()]), call


@parser("imatrix", "qcore.models.imatrix.read")
def _imatrix(folder: Path) -> tuple[Mutator, Call]:
    import torch

    from qcore.models import imatrix

    torch.set_num_threads(1)
    slot = Slot(folder / "imatrix")

    def call(content: bytes) -> None:
        for values in imatrix.read(slot.put(content)).values.values():
            assert values.nbytes <= len(content) and bool(torch.isfinite(values).all())

    return Bytes([samples.gguf_imatrix(), samples.legacy_imatrix()]), call


# -- settings


@parser("config", "qcore.models.config.read_config, check_against")
def _config(folder: Path) -> tuple[Mutator, Call]:
    from qcore.models.config import quantized_by, read_config
    from qcore.models.config_limits import check_against
    from qcore.models.headers import TensorInfo

    slot = Slot(folder / "config" / "config.json")
    tensors = {f"t{i}": TensorInfo("F32", (32, 16), 2048, "model.safetensors", 0) for i in range(12)}

    def call(content: bytes) -> None:
        slot.put(content)
        config, _ = read_config(slot.path.parent, quantized=True)
        quantized_by(config, slot.path.parent)
        check_against(config, tensors)

    return Json([samples.LLAMA, samples.QWEN, samples.WRAPPER]), call


@parser("architecture", "qcore.models.assembly.empty_model of a config.json")
def _architecture(folder: Path) -> tuple[Mutator, Call]:
    import torch

    from qcore.base.errors import InputError, QcoreError
    from qcore.models.assembly import empty_model
    from qcore.models.config import read_config, to_transformers
    from qcore.models.config_limits import check_against
    from qcore.models.headers import TensorInfo

    torch.set_num_threads(1)
    slot = Slot(folder / "config" / "config.json")
    tensors = {f"t{i}": TensorInfo("F32", (64, 32), 8192, "model.safetensors", 0) for i in range(40)}

    def call(content: bytes) -> None:
        slot.put(content)
        config, _ = read_config(slot.path.parent)
        check_against(config, tensors)
        try:
            empty_model(to_transformers(config), meta_buffers=True)
        except (QcoreError, MemoryError):
            raise
        except Exception as error:  # every caller of `empty_model` says the same in its own words
            raise InputError(f"No model: {type(error).__name__}") from error

    return Json([samples.LLAMA, samples.QWEN, samples.WRAPPER]), call


@parser("generation", "qcore.library.loading.set_generation_config")
def _generation(folder: Path) -> tuple[Mutator, Call]:
    from types import SimpleNamespace

    from qcore.library.loading import set_generation_config

    slot = Slot(folder / "generation" / "generation_config.json")

    def call(content: bytes) -> None:
        slot.put(content)
        model: Any = SimpleNamespace()
        set_generation_config(model, slot.path.parent)

    return Json([samples.GENERATION]), call


@parser("tokenizer", "qcore.library.loading.load_tokenizer")
def _tokenizer(folder: Path) -> tuple[Mutator, Call]:
    from qcore.library.loading import load_tokenizer
    from qcore.models.checkpoint import Checkpoint

    files = samples.tokenizer()
    slots = {name: Slot(folder / "tokenizer" / name) for name in files}
    own = {"llama": Checkpoint("m", folder / "tokenizer", None, "", samples.LLAMA, {}, False, "", "folder")}

    def call(content: bytes) -> None:
        try:
            given = json.loads(content)
        except (ValueError, RecursionError):
            given = None
        for name, slot in slots.items():
            part = given.get(name) if isinstance(given, dict) else None
            slot.put(json.dumps(part).encode() if part is not None else content[:200])
        found = load_tokenizer(own["llama"])
        ids = found("ab c <s>")["input_ids"]
        assert all(isinstance(each, int) for each in ids)
        found.decode(ids)

    return Json([files]), call


@parser("template", "qcore.evaluation.chat.render")
def _template(folder: Path) -> tuple[Mutator, Call]:
    from transformers import PreTrainedTokenizerFast

    from qcore.base.prompts import Message
    from qcore.evaluation.chat import render

    path = Slot(folder / "inner.json").put(samples.encoded(samples.tokenizer()["tokenizer.json"]))
    owner = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>")
    messages = (Message("system", "Be brief."), Message("user", "Hi {{ x }}"))

    def call(content: bytes) -> None:
        owner.chat_template = content.decode("utf-8", "replace")
        assert isinstance(render(owner, messages), str)

    return Bytes(samples.TEMPLATES, samples.TEMPLATE_WORDS), call


# -- qcore's own records


@parser("manifest", "qcore.library.manifest.read, check")
def _manifest(folder: Path) -> tuple[Mutator, Call]:
    import torch

    from qcore.library import manifest
    from qcore.models.assembly import empty_model
    from qcore.models.config import read_config, to_transformers
    from qcore.models.headers import read_header
    from tests.fuzz.models import saved_models

    torch.set_num_threads(1)
    records, models, headers = [], {}, {}
    for name, made in saved_models(folder / "saved").items():
        records.append(json.loads((made / manifest.MANIFEST).read_text()) | {"note": name})
        models[name] = empty_model(to_transformers(read_config(made)[0]), meta_buffers=True)
        headers[name] = read_header(made / "model.safetensors")
    slot = Slot(folder / "manifest" / manifest.MANIFEST)

    def call(content: bytes) -> None:
        slot.put(content)
        found = manifest.read(slot.path.parent)
        for name in models:
            try:
                manifest.check(found, models[name], headers[name])
            except manifest.InputError as error:
                last = error
            else:
                return
        raise last

    return Json(records), call


@parser("onnx", "qcore.library.onnx_folder.checkpoint")
def _onnx(folder: Path) -> tuple[Mutator, Call]:
    from qcore.library import onnx_folder

    slot = Slot(folder / "onnx" / onnx_folder.MANIFEST)
    Slot(folder / "onnx" / "config.json").put(samples.encoded(samples.LLAMA))
    for name in ("model.onnx", "model.onnx.data"):
        Slot(folder / "onnx" / name).put(bytes(64))

    def call(content: bytes) -> None:
        slot.put(content)
        onnx_folder.checkpoint(slot.path.parent, "model", "A folder.")

    return Json([samples.ONNX]), call


@parser("database", "qcore.results.store.Store")
def _database(folder: Path) -> tuple[Mutator, Call]:
    from qcore.results.store import Store

    original = folder / "original.db"
    store = Store(original)
    row: Any = {"recipe": "int8", "status": "ok", "record": {"model": "m"}}
    store.put_run("20260101-000000-abcdef", 1.0, "done", {"state": "done"})
    store.put_row("20260101-000000-abcdef", 0, row)
    store.runs()
    place = folder / "database"

    def call(content: bytes) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        path = place / "other.db"
        path.write_bytes(content)
        opened = Store(path)
        opened.runs()
        opened.rows("20260101-000000-abcdef")
        opened.latest("m")

    return Bytes([original.read_bytes()]), call


@parser("recipe", "qcore.recipes.parse_row, Recipe.from_dict, read_recipe")
def _recipe(folder: Path) -> tuple[Mutator, Call]:
    from qcore.base.errors import InputError
    from qcore.library.manifest import read_recipe
    from qcore.recipes import parse_row

    def call(content: bytes) -> None:
        if content[:1] != b"{":
            for name in content.decode("utf-8", "replace").split(","):
                parse_row(name)
            return
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            return
        try:
            read_recipe(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # as its callers do
            raise InputError("damaged") from error

    names, records = Bytes(samples.RECIPES), Json([samples.RECIPE])
    return lambda chance: (records if chance.random() < 0.5 else names)(chance), call


# -- what people type and upload


@parser("name", "qcore.models.names.classify")
def _name(folder: Path) -> tuple[Mutator, Call]:
    from qcore.models.names import classify

    def call(content: bytes) -> None:
        found = classify(content.decode("utf-8", "surrogateescape"), public=True)
        assert found.kind in ("hub", "default") and ".." not in found.text

    return Bytes(samples.NAMES), call


@parser("text", "qcore.base.texts.text_from_bytes")
def _text(folder: Path) -> tuple[Mutator, Call]:
    from qcore.base.texts import text_from_bytes

    return Bytes(samples.TEXTS), lambda content: text_from_bytes("upload.txt", content)


@parser("entries", "qcore.base.prompts.load_prompts, qcore.evaluation.questions.load_questions")
def _entries(folder: Path) -> tuple[Mutator, Call]:
    from qcore.base.errors import InputError
    from qcore.base.prompts import load_prompts
    from qcore.evaluation.questions import load_questions

    slots = [Slot(folder / f"file.{end}") for end in ("jsonl", "csv", "tsv")]

    def call(content: bytes) -> None:
        last, accepted = None, False
        for slot in slots[: 1 if content[:1] in b"[{" else 3]:
            path = slot.put(content)
            for load in (load_prompts, load_questions):
                try:
                    load(path)
                    accepted = True
                except InputError as error:
                    last = error
        if last is not None and not accepted:
            raise last

    return Bytes(samples.ROWS), call


# -- native code


@parser("kernels", "qcore_pack, qcore_unpack, qcore_linear, qcore_rows of the native library")
def _kernels(folder: Path) -> tuple[Mutator, Call]:
    from tests.fuzz.kernels import opened

    return opened()

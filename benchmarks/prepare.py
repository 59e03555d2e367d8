"""Prepare the files that `speed.py` measures, once: the same weights in the format of each program.

    python -m benchmarks.prepare FOLDER THREADS ITEM …

creates the missing files and prints {"files": {item: path}, "prompt": token ids, "digest": …} on the last
line. Each entry's name holds a hash of what it depends on (the model, the peer's version, the code that makes
it), so nothing stale is ever measured.

    int4-g32-head8    a folder saved by qcore
    q4_0, q8_0        GGUF files quantized by llama.cpp from float32
    ort-int4          by onnxruntime-genai's own builder
    gguf-q4_0-head8 … GGUF files that `qcore export` writes
    0.6b …            the same of a Llama of random weights
"""

import hashlib
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from benchmarks import gguf_writer
from benchmarks.peers import llamacpp
from benchmarks.plan import EXPORTED, MODEL, ORT_HEAD8, ORT_INT4, PROMPT, RANDOM
from qcore import library, recipes
from qcore.base import texts
from qcore.base.errors import QcoreError, RunError
from qcore.base.home import build_folder
from qcore.base.quiet import silence
from qcore.cli.progress import Show
from qcore.interop import gguf_metadata, gguf_names
from qcore.library import gguf_folder, safetensors
from qcore.library.loading import load_tokenizer
from qcore.models.checkpoint import Checkpoint
from qcore.quantization import convert

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
# nats; the largest mean KL divergence between two float32 programs; a wrong permutation gives more than 1
CLOSE = 1e-5

OWN_CODE = (
    ROOT / "qcore" / "formats",
    ROOT / "qcore" / "quantization" / "methods",
)  # what qcore's files depend on
EXPORT_CODE = (ROOT / "qcore" / "interop", gguf_folder)


class Cache:
    """The folder of prepared files, and the models they are made from."""

    def __init__(self, folder: Path, threads: int):
        self.folder, self.threads = folder, threads
        self.checkpoint: Checkpoint = library.resolve(MODEL)

    def path(self, item: str, show) -> Path:
        """Return the prepared `item`, made now if missing."""
        source, _, kind = item.rpartition(" ")
        if kind in ("q4_0", "q8_0"):
            parts, make = (gguf_writer, gguf_names, gguf_metadata, llamacpp), self._gguf
        elif kind in (ORT_INT4, ORT_HEAD8):
            parts, make = (), self._onnx
        elif kind in EXPORTED:
            parts, make = (*OWN_CODE, *EXPORT_CODE), self._exported
        else:
            parts, make = (*OWN_CODE, safetensors), self._own
        weights = json.dumps(SHAPE) if source == RANDOM else self.checkpoint.digest
        key = hashlib.sha256(
            "\n".join([weights, *map(_code, (__file__, *parts)), *_versions(kind)]).encode()
        ).hexdigest()[:12]

        def build(folder: Path) -> None:
            show(0, 0, f"preparing {item} (once)")
            make(source, kind, folder)

        final = build_folder(self.folder / f"{source or MODEL}-{kind}-{key}", build)
        for stale in self.folder.glob(f"{source or MODEL}-{kind}-{'[0-9a-f]' * len(key)}"):
            if stale != final:
                shutil.rmtree(stale, ignore_errors=True)
        return final / f"{kind}.gguf" if kind in ("q4_0", "q8_0", *EXPORTED) else final

    def prompt(self) -> list[int]:
        """Return the first tokens of the packaged text."""
        return texts.tokenize(
            texts.load_text(None), library.load(self.checkpoint).tokenizer, limit=PROMPT
        ).tolist()

    def model(self, source: str) -> torch.nn.Module:
        """Return a float32 model that may be modified."""
        return random_model() if source == RANDOM else library.load(self.checkpoint).model

    def _own(self, source: str, kind: str, folder: Path) -> None:
        model, recipe = self.model(source), recipes.parse(kind)
        ledger = convert.quantize(model, recipe)
        folder.rmdir()  # `save` makes its own
        safetensors.save(model, None, recipe, ledger, folder)

    def _gguf(self, source: str, kind: str, folder: Path) -> None:
        model, whole = self.model(source), folder / "f32.gguf"
        gguf_writer.write(model, whole)
        llamacpp.quantize(whole, folder / f"{kind}.gguf", kind, self.threads)
        if source != RANDOM:
            prompt = self.prompt()
            reference = _log_probabilities(model, prompt)
            seen = {
                name: _divergence(reference, folder / f"{name}.gguf", prompt, self.threads)
                for name in ("f32", kind)
            }
            (folder / "divergence.json").write_text(json.dumps(seen))
            if not seen["f32"] < CLOSE:
                raise RunError(
                    "The GGUF file does not hold the model: in float32, llama.cpp's predictions "
                    "differ from torch's by "
                    f"{seen['f32']:.2g} nats per token, and {CLOSE:.0e} is what rounding explains."
                )
        whole.unlink()

    def _exported(self, source: str, kind: str, folder: Path) -> None:
        scratch = folder / "scratch"
        original = scratch / "original"
        if source == RANDOM:
            self.model(source).save_pretrained(original)
            load_tokenizer(self.checkpoint).save_pretrained(original)
        command = [
            *(sys.executable, "-m", "qcore", "export", str(original) if source == RANDOM else MODEL),
            *("--to", "gguf", "--recipe", kind, "--out", str(scratch / "exported")),
        ]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RunError(f"{kind} could not be exported:\n" + "\n".join(done.stdout.splitlines()[-5:]))
        (file,) = (scratch / "exported").glob("*.gguf")
        file.rename(folder / f"{kind}.gguf")
        shutil.rmtree(scratch)

    def _onnx(self, source: str, kind: str, folder: Path) -> None:
        scratch = folder / "scratch"
        command = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(self.checkpoint.folder),
            "-o",
            str(folder),
            "-p",
            "int4",
            "-e",
            "cpu",
            "-c",
            str(scratch),
            "--extra_options",
            "block_size=32",
            "accuracy_level=4",
            *(["algo_config=rtn", "matmul_mixed_precision=last_matmul:int8"] if kind == ORT_HEAD8 else []),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RunError(
                "onnxruntime-genai could not build its model. Its last words:\n"
                + "\n".join(done.stdout.splitlines()[-5:])
            )
        shutil.rmtree(scratch, ignore_errors=True)


def random_model() -> torch.nn.Module:
    """Return a Llama of SHAPE with reproducible random weights: 0.6 billion of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def _code(part) -> str:
    """Return the source text of a module, a file, or all files of a folder."""
    path = Path(getattr(part, "__file__", part))
    return "".join(file.read_text() for file in (sorted(path.glob("*.py")) if path.is_dir() else [path]))


def _versions(kind: str) -> list[str]:
    packages = ["llama-cpp-python"] if kind in ("q4_0", "q8_0") else []
    packages += ["onnxruntime-genai", "onnxruntime"] if kind in (ORT_INT4, ORT_HEAD8) else []
    return [f"{package} {metadata.version(package)}" for package in (*packages, "torch", "transformers")]


@torch.inference_mode()
def _log_probabilities(model: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    return model(torch.tensor([prompt])).logits[0].log_softmax(-1)


def _divergence(reference: torch.Tensor, path: Path, prompt: list[int], threads: int) -> float:
    """Return the mean KL divergence (nats per token) of llama.cpp's predictions with the file at `path` from
    `reference` (T, vocabulary)."""
    llama = llamacpp.Llama(path, threads, exact=True)
    found = torch.from_numpy(llama.all_logits(prompt)).log_softmax(-1)
    llama.close()
    return float((reference.exp() * (reference - found)).sum(-1).mean())


def main(folder: str, threads: str, *items: str) -> None:
    """Prepare `items` in `folder` and print their paths."""
    silence()
    torch.set_num_threads(int(threads))
    cache = Cache(Path(folder), int(threads))
    with Show() as show:
        files = {item: str(cache.path(item, show)) for item in items}
    print(json.dumps({"files": files, "prompt": cache.prompt(), "digest": cache.checkpoint.digest}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except QcoreError as error:
        sys.exit(str(error))

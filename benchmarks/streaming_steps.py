"""The steps timed by `streaming.py`, each in its own process: `python -m benchmarks.streaming_steps STEP
OPTIONS`, OPTIONS a JSON object.

The last line of output is a JSON object with the step's own figures; the parent measures memory and time of
the process.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from qcore.base.quiet import silence

CHUNK = 8 << 20  # bytes read or written at a time
GAP = 2.0  # seconds


class Stopwatch:
    """A clock of the seconds since its creation, without those during which this process was stopped from
    outside (by a shell's Ctrl-Z or a job scheduler): a thread reads the clock five times per second, and a
    gap of more than `GAP` seconds is such a stop."""

    def __init__(self):
        self._began, self.stopped = time.perf_counter(), 0.0
        threading.Thread(target=self._look, daemon=True).start()

    @property
    def seconds(self) -> float:
        """See the class."""
        return time.perf_counter() - self._began - self.stopped

    def _look(self) -> None:
        last = time.perf_counter()
        while True:
            time.sleep(0.2)
            now = time.perf_counter()
            self.stopped += now - last - 0.2 if now - last > GAP else 0.0
            last = now


def copy(source: str, target: str, nbytes: int) -> dict:
    """Read all files of the checkpoint `source` and write `nbytes` to `target`, flushed to the disk: the
    minimum for any quantizer."""
    buffer, watch = bytearray(CHUNK), Stopwatch()
    read = 0
    for file in sorted(Path(source).glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                read += count
    middle = watch.seconds
    with Path(target).open("wb", buffering=0) as opened:
        for start in range(0, nbytes, CHUNK):
            opened.write(buffer[: min(CHUNK, nbytes - start)])
        os.fsync(opened.fileno())
    ended = watch.seconds
    Path(target).unlink()
    return {"read_bytes": read, "written_bytes": nbytes, "read_s": middle, "write_s": ended - middle}


def quantize(source: str, target: str, recipe: str, shard_bytes: int, die_after: int | None = None) -> dict:
    """Run `python -m qcore quantize --stream`. With `die_after` the process kills itself with SIGKILL once so
    many shards are finished and the next one has begun."""
    from qcore import library, models
    from qcore.library import journal
    from qcore.library.loading import load_tokenizer
    from qcore.recipes import parse
    from qcore.streaming import quantizing

    notes, note = [], journal.Journal.note

    def count(self, file: str, sha256: str) -> None:
        note(self, file, sha256)
        notes.append(file)
        if len(notes) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    journal.Journal.note = count
    start = Stopwatch()
    checkpoint = library.resolve(source)
    (
        load_tokenizer(checkpoint),
        models.meta_model(checkpoint),
    )  # loads the libraries, whose time is reported separately
    starting, watch = start.seconds, Stopwatch()
    ledger = quantizing.quantize(checkpoint, parse(recipe), Path(target), shard_bytes=shard_bytes)
    return {
        "quantize_s": watch.seconds,
        "starting_s": starting,
        "shards_made": len(notes),
        "bits_per_weight": ledger.bits_per_weight,
    }


def evaluate(source: str, recipes: list[str], tokens: int, window: int) -> dict:
    """Run `python -m qcore eval --stream --recipes …`."""
    from qcore.recipes import parse
    from qcore.verbs.evaluate import run_streamed

    found = run_streamed(
        source,
        tuple(parse(name) for name in recipes),
        tokens=tokens,
        window=window,
        progress=lambda done, total, detail: None,
    )
    rows = [
        {
            "recipe": row["recipe"],
            "perplexity": row["perplexity"],
            "kl_mean": row["divergence"] and row["divergence"]["kl_mean"],
            "tokens_scored": row["tokens_scored"],
        }
        for row in found["rows"]
    ]
    return {"rows": rows}


def llama_cpp(source: str, scratch: str, kind: str, workers: int) -> dict:
    """Run llama.cpp's own quantizer on the same weights, from a GGUF file in bfloat16 that is written first,
    untimed. Rows of queries and keys are not permuted, which changes neither time nor size."""
    import llama_cpp as api

    from benchmarks.peers.llamacpp import silence as silence_llama

    whole, small = Path(scratch) / "bf16.gguf", Path(scratch) / "small.gguf"
    watch = Stopwatch()
    write_gguf(Path(source), whole)
    written = watch.seconds
    flush([whole])
    silence_llama(api)
    options = api.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}"), workers
    watch = Stopwatch()
    status = api.llama_model_quantize(str(whole).encode(), str(small).encode(), ctypes.byref(options))
    seconds = watch.seconds
    if status:
        raise RuntimeError(f"llama.cpp could not quantize the model to {kind}")
    with small.open("rb+") as file:
        os.fsync(file.fileno())
    flushed = watch.seconds
    found = {
        "quantize_s": flushed,
        "unflushed_s": seconds,
        "writing_gguf_s": written,
        "written_bytes": small.stat().st_size,
    }
    whole.unlink(), small.unlink()
    return found


def write_gguf(source: Path, path: Path) -> None:
    """Write the Llama checkpoint in `source` as a GGUF file, tensors unchanged."""
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from safetensors import safe_open

    from qcore.interop.gguf_names import Names
    from qcore.models.config import to_transformers

    config = json.loads((source / "config.json").read_text())
    names = Names(to_transformers(config))
    writer = GGUFWriter(str(path), "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_tokenizer_model("none")
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for full in opened.keys():  # noqa: SIM118 (not a mapping)
                tensor = opened.get_tensor(full)
                (place,) = names.places(full, tuple(tensor.shape))
                if tensor.ndim == 1:  # norms are kept in float32, as llama.cpp requires
                    writer.add_tensor(place.name, tensor.float().numpy())
                else:
                    writer.add_tensor(
                        place.name, tensor.view(torch.uint8).numpy(), raw_dtype=GGMLQuantizationType.BF16
                    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bitsandbytes(source: str, kind: str) -> dict:
    """Run bitsandbytes' own quantizer on the same weights: every linear matrix is read through a memory map
    and passed to `quantize_4bit`; nothing is written."""
    from bitsandbytes.functional import quantize_4bit
    from safetensors import safe_open

    watch = Stopwatch()
    for file in sorted(Path(source).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if name.endswith("_proj.weight"):
                    quantize_4bit(opened.get_tensor(name), blocksize=64, quant_type=kind)
    return {"quantize_s": watch.seconds, "written_bytes": 0}


def flush(files) -> None:
    """Flush `files` to disk and drop them from the page cache, so that the next reader starts cold."""
    for path in files:
        with Path(path).open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


STEPS = {step.__name__: step for step in (copy, quantize, evaluate, llama_cpp, bitsandbytes)}

if __name__ == "__main__":
    silence()
    print(json.dumps(STEPS[sys.argv[1]](**json.loads(sys.argv[2]))))

"""Run an exported language model with ONNX Runtime and numpy only.

    python run_onnx.py "Once upon a time"              also needs the package tokenizers
    python run_onnx.py --ids 1,2,3 --new-tokens 64     token ids in, token ids out

The program reads model.onnx in its own folder and continues the text greedily: each new token is the most
likely one. Keys and values of earlier tokens stay in a cache, so that a step reads one token.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime


class OnnxModel:
    """A session on the file `path`; `threads` None is ONNX Runtime's default."""

    def __init__(self, path: str | Path, threads: int | None = None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.caches = [
            (entry.name, entry.shape[1], entry.shape[3])
            for entry in self.session.get_inputs()
            if entry.name.startswith("past.")
        ]

    def step(
        self, ids: np.ndarray, cache: list | None = None, at: np.ndarray | None = None
    ) -> tuple[np.ndarray, list]:
        """Read token `ids` (B, T) after those in `cache` (None: empty). Return float32 logits (B, n, V) of
        the positions `at` (None: the last), and the cache for the next call."""
        rows, tokens = ids.shape
        if cache is None:
            cache = [_value(np.zeros((rows, heads, 0, size), np.float32)) for _, heads, size in self.caches]
        places = np.array([tokens - 1]) if at is None else at
        feed = {name: held for (name, *_), held in zip(self.caches, cache, strict=True)}
        feed["input_ids"] = _value(np.ascontiguousarray(ids, np.int64))
        feed["logits_at"] = _value(np.ascontiguousarray(places, np.int64))
        logits, *cache = self.session.run_with_ort_values(self.outputs, feed)
        return logits.numpy(), cache

    def greedy(self, ids: list[int], count: int, ends: tuple[int, ...] = ()) -> list[int]:
        """Return up to `count` tokens that continue `ids` greedily, stopping before a token in `ends`."""
        written: list[int] = []
        cache, block = None, np.array([ids])
        while len(written) < count:
            logits, cache = self.step(block, cache)
            token = int(logits[0, -1].argmax())
            if token in ends:
                break
            written.append(token)
            block = np.array([[token]])
        return written


def _value(array: np.ndarray):
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Continue a text with the model in this folder.")
    parser.add_argument("text", nargs="?", help="the text to continue")
    parser.add_argument("--ids", help="comma-separated token ids, instead of a text")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int)
    arguments, folder = parser.parse_args(), Path(__file__).resolve().parent
    if (arguments.text is None) == (arguments.ids is None):
        parser.error("give either a text or --ids")
    tokenizer = None
    if arguments.ids is not None:
        ids = [int(number) for number in arguments.ids.split(",")]
    else:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            parser.exit(2, "A text needs the package tokenizers: pip install tokenizers. Or give --ids.\n")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = tokenizer.encode(arguments.text).ids
    written = OnnxModel(folder / "model.onnx", arguments.threads).greedy(ids, arguments.new_tokens)
    print(tokenizer.decode(written) if tokenizer else ",".join(map(str, written)))


if __name__ == "__main__":
    main()

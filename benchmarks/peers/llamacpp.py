"""llama.cpp through the C interface that llama-cpp-python wraps: only `llama_decode` is timed, without
sampling and text.

All settings are llama.cpp's defaults (float16 key-value cache, flash attention "auto", memory map, weights
repacked for the processor where it has a layout for that), except the number of threads.
"""

import ctypes
import sys
import time

import numpy as np

from benchmarks.clock import timed
from benchmarks.plan import PROMPT, STEPS
from qcore.base.errors import RunError


class Llama:
    """One GGUF file with its own context for `capacity` tokens. `exact` selects a float32 cache without flash
    attention."""

    def __init__(self, path: str, threads: int, capacity: int = PROMPT + STEPS, *, exact: bool = False):
        import llama_cpp

        self.api = llama_cpp
        silence(llama_cpp)
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RunError(f"llama.cpp cannot load {path}.")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = capacity, PROMPT, PROMPT
        options.n_threads = options.n_threads_batch = threads
        if exact:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
            options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RunError(f"llama.cpp cannot make a context for {path}.")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def reset(self) -> None:
        """Forget all tokens."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def decode(self, tokens) -> tuple[float, int]:
        """Append `tokens`; return the seconds taken, and the most likely next token."""
        array = (self.api.llama_token * len(tokens))(*tokens)
        batch = self.api.llama_batch_get_one(array, len(tokens))
        start = time.perf_counter()
        status = self.api.llama_decode(self.context, batch)
        taken = time.perf_counter() - start
        if status:
            raise RunError(f"llama_decode failed with status {status}.")
        return taken, int(self._logits(len(tokens) - 1 if len(tokens) == 1 else -1).argmax())

    def all_logits(self, tokens) -> np.ndarray:
        """Return the logits (T, vocabulary) after each of `tokens`, from an empty cache."""
        self.reset()
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = (
                token,
                i,
                1,
                0,
                True,
            )
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if status:
            raise RunError(f"llama_decode failed with status {status}.")
        return np.stack([self._logits(i) for i in range(len(tokens))])

    def _logits(self, index: int) -> np.ndarray:
        pointer = self.api.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(pointer, (self.vocabulary,)).copy()

    def close(self) -> None:
        """Free the model and the context."""
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def silence(api) -> None:
    """Silence llama.cpp, which logs hundreds of lines per file; errors arrive as return values."""
    silence.callback = api.llama_log_callback(
        lambda level, text, data: None
    )  # kept, because C holds only a pointer to it
    api.llama_log_set(silence.callback, ctypes.c_void_p(0))


def quantize(source, target, kind: str, threads: int) -> None:
    """Let llama.cpp quantize a GGUF file to `kind` ("q4_0", "q8_0"). Raise `RunError` if it fails."""
    import llama_cpp

    silence(llama_cpp)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    options.nthread = threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        raise RunError(f"llama.cpp could not quantize the model to {kind}.")


def load(options: dict):
    """Load a context for each item ("q4_0", "0.6b q4_0"); see the package."""
    import llama_cpp

    models = {item: Llama(options["files"][item], options["threads"]) for item in options["items"]}

    def measure(item: str) -> dict[str, float]:
        model = models[item]

        def read(tokens) -> tuple[float, int]:
            model.reset()
            return model.decode(tokens)

        steps = options.get("steps", STEPS)
        return timed(read, lambda token: model.decode([token]), options["prompt"], steps)

    about = {"system": llama_cpp.llama_print_system_info().decode().strip()}
    return measure, about | {
        item: {"stored_bytes": int(llama_cpp.llama_model_size(model.model))} for item, model in models.items()
    }


if __name__ == "__main__":  # quantizes a file in an environment without qcore's own libraries
    quantize(*sys.argv[1:4], threads=int(sys.argv[4]))

"""llama.cpp's own quantizer, from the same weights: written as a float32 GGUF file, quantized, dequantized by
the package `gguf`.

An item is a file type, "Q4_0", "Q4_0 pure" (this type for every tensor, in place of the file type's mixture),
or one "with imatrix". The embedding (in the default model also the output
head) is left in float32, so that only the linear layers differ from the baseline. If rows do not fit the
requested type (576 inputs are not a multiple of 256), llama.cpp chooses another type for the tensor, as in
the files that people download; `details` counts the types.
"""

import ctypes
import hashlib
from collections import Counter

import torch
from safetensors.torch import load_file, save_file

from benchmarks import gguf_writer, imatrix
from benchmarks.peers.llamacpp import silence
from benchmarks.quantizers import Job, Stored, linears, put
from qcore.base.errors import RunError
from qcore.base.home import home
from qcore.interop import gguf_names
from qcore.interop.gguf_names import Place
from qcore.quantization.calibration.importance import compute

WITH, PURE = " with imatrix", " pure"


def quantize(job: Job) -> Stored:
    """See the module."""
    model, kind = job.loaded.model, job.item.removesuffix(WITH)
    values = {}
    if job.item.endswith(WITH):
        own = importance(job)
        values = {place.name: own[name] for name, place in file_places(model).items() if name in own}
    whole, small = job.scratch / "f32.gguf", job.scratch / "small.gguf"
    job.say("writing the weights as a GGUF file")
    gguf_writer.write(model, whole)
    job.say(f"llama.cpp quantizes to {kind}")
    run(whole, small, kind, job.threads, values)
    whole.unlink()
    return take(model, small, job.layers)


def importance(job: Job) -> dict[str, torch.Tensor]:
    """Return the importance matrix of the calibration text, computed once per model and text."""
    text = job.calibration()
    about = f"{job.loaded.checkpoint.digest} {text.ids.tolist()}"
    name = f"imatrix-{hashlib.sha256(about.encode()).hexdigest()[:16]}.safetensors"
    file = home() / "benchmarks" / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found, _ = compute(job.loaded.model, text, lambda done, total, words: job.say(f"importance, {words}"))
        save_file({name: value[0] for name, value in found.items()}, file)
    return load_file(file)


def run(source, target, kind: str, threads: int, values: dict[str, torch.Tensor]) -> None:
    """Let llama.cpp quantize the file `source` to `kind`, with embedding and head left in float32. Raise
    `RunError` if it fails."""
    import llama_cpp

    silence(llama_cpp)
    options = llama_cpp.llama_model_quantize_default_params()
    options.pure = kind.endswith(PURE)
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.removesuffix(PURE).upper()}")
    options.nthread = threads
    options.token_embedding_type = options.output_tensor_type = llama_cpp.GGML_TYPE_F32
    array = imatrix.as_c(values, llama_cpp.llama_model_imatrix_data) if values else None
    if array:
        options.imatrix = ctypes.cast(array, type(options.imatrix))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        raise RunError(f"llama.cpp could not quantize the model to {kind}.")


def take(model: torch.nn.Module, path, wanted: str | None = None) -> Stored:
    """Set the linear layers of `model`, those called `wanted`, to the values in the file at `path`."""
    from gguf import GGUFReader, dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    layers, types, nbytes = linears(model, wanted), Counter(), 0
    places = file_places(model)
    for name, layer in layers.items():
        tensor = stored[places[name].name]
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).view(layer.weight.shape)
        order = places[name].pick(torch.arange(len(values)))
        put(layer, values[order.argsort()])
        types[tensor.tensor_type.name] += layer.weight.numel()
        nbytes += int(tensor.n_bytes)
    weights = sum(types.values())
    shares = {kind: count / weights for kind, count in types.most_common()}
    mixture = ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items())
    return Stored(nbytes, weights, frozenset(layers), (f"Weights by type: {mixture}.",), {"types": shares})


def file_places(model: torch.nn.Module) -> dict[str, Place]:
    """Return the tensor of the file that holds each parameter, by the parameter's name."""
    names = gguf_names.Names(model.config)
    return {
        name: names.places(name, tuple(parameter.shape))[0] for name, parameter in model.named_parameters()
    }

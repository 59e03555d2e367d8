"""GGUF files in llama.cpp and its fork: the logits of every architecture and type."""

import ggml_arithmetic
import gguf
import matrix
import numpy as np
import pytest
import runtimes
from matrix import ARCHITECTURES, GGUF_ARCHITECTURES, Other

from qcore import library
from qcore.base.errors import InputError
from qcore.library.parameters import LoadedParameters
from qcore.recipes import parse
from qcore.verbs import export
from qcore.verbs.prepare import prepare

RECIPES = (
    "fp32",
    "int8-g32-sym",
    "gguf-q4_0",
    "gguf-q4_1",
    "gguf-iq4_nl",
    "gguf-q4_k",
    "gguf-q4_k_m",
    "gguf-q6_k",
)
EXACT = 5e-4  # absolute: sums in another order
MEAN, FLIPPED = 0.02, 0.1  # shares of the logits' standard deviation, see `matrix.passed`
UNKNOWN = Other("ik_llama.cpp cannot load this architecture.", "Failed to load model")
FORK = {  # what ik_llama.cpp 0.1.5 does not compute
    "gpt2": UNKNOWN,
    "olmoe": UNKNOWN,
    "phi3": UNKNOWN,
    "gemma2": Other("ik_llama.cpp ends its process while it builds Gemma 2.", "fatal error"),
    "llama3": Other("ik_llama.cpp computes the logits of unscaled positions.", None),
    "mixtral": Other("ik_llama.cpp computes other logits; llama.cpp computes ours from the same file.", None),
}
TOKENS = 16
pytestmark = [pytest.mark.interop, pytest.mark.slow]


def exported(originals, architecture, recipe, folder):
    """Export, and return (the file, the oracle's logits)."""
    source = str(originals(architecture))
    result = export.run(source, parse(recipe), folder, to="gguf", progress=lambda *step: None)
    chosen = None if recipe == "fp32" else parse(recipe)
    made = prepare(library.resolve(source), chosen)
    return folder / result["files"][0], ggml_arithmetic.model(LoadedParameters(made.loaded))


@pytest.mark.parametrize("recipe", RECIPES)
def test_llama_cpp_computes_the_same(recipe, originals, ids, tmp_path):
    runtimes.interpreter("llama.cpp")
    files, wanted = {}, {}
    for name in ARCHITECTURES | GGUF_ARCHITECTURES:
        try:
            files[name], oracle = exported(originals, name, recipe, tmp_path / name)
            wanted[name] = ggml_arithmetic.logits(oracle, ids[:TOKENS])
        except InputError as error:
            matrix.refused("gguf", name, "llama.cpp", recipe=recipe, error=error)
    found = runtimes.logits("llama.cpp", files, ids[:TOKENS])
    for name, ours in wanted.items():
        assert not isinstance(found[name], str), found[name]
        spread = float(ours.std())
        limits = (EXACT, None) if recipe == "fp32" else (round(MEAN * spread, 4), round(FLIPPED * spread, 4))
        matrix.passed(
            "gguf",
            name,
            "llama.cpp",
            recipe=recipe,
            ours=ours,
            theirs=found[name],
            tolerance=limits[0],
            flipped=limits[1],
        )


@pytest.mark.parametrize("name", ARCHITECTURES | GGUF_ARCHITECTURES)
def test_ik_llama_cpp_computes_the_same(name, originals, ids, tmp_path):
    """It keeps keys and values in 16 bits, so a file in float32 is compared."""
    runtimes.interpreter("ik_llama.cpp")
    file, oracle = exported(originals, name, "fp32", tmp_path / name)
    ours = ggml_arithmetic.logits(oracle, ids[:TOKENS])
    try:
        found = runtimes.logits("ik_llama.cpp", {name: file}, ids[:TOKENS])[name]
    except RuntimeError as death:
        found = str(death)
    tolerance = round(0.01 * float(ours.std()), 4)
    if name in FORK:
        assert isinstance(found, str) or np.abs(found - ours).max() > 10 * tolerance, "it is right now"
        matrix.unread("gguf", name, "ik_llama.cpp", recipe="fp32", found=found, why=FORK[name])
    else:
        assert not isinstance(found, str), found
        matrix.passed(
            "gguf", name, "ik_llama.cpp", ours=ours, theirs=found, tolerance=tolerance, recipe="fp32"
        )


def test_no_tensor_is_one_too_many(originals, tmp_path):
    """A tied head is no tensor of its own; rotary factors are."""
    names = {}
    for name in ("llama-tied", "llama3"):
        file, _ = exported(originals, name, "fp32", tmp_path / name)
        names[name] = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    assert "output.weight" not in names["llama-tied"] and "rope_freqs.weight" not in names["llama-tied"]
    assert {"output.weight", "rope_freqs.weight"} <= names["llama3"]


def test_the_oracle_rounds_inputs(originals, ids):
    """Otherwise the test of quantized files would prove less than it says."""
    made = prepare(library.resolve(str(originals("llama"))), parse("int8-g32-sym"))
    parameters = LoadedParameters(made.loaded)
    rounded = ggml_arithmetic.logits(ggml_arithmetic.model(parameters), ids[:TOKENS])
    for module in made.loaded.model.modules():
        if hasattr(module, "activations"):
            module.activations = "fp32"
    exact = ggml_arithmetic.logits(made.loaded.model, ids[:TOKENS])
    assert 0.001 < np.abs(rounded - exact).max() / exact.std() < 0.2

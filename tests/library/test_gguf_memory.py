"""A GGUF file of the default model is loaded and generates text in little more memory than its size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from qcore import recipes
from qcore.verbs import export

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1.3  # times the file: weights once, and tens of megabytes for a tokenizer of 49,152 tokens
MEASURE = """
import json, sys, torch
from qcore import library
from qcore.measurement.memory import PeakMemory

def generate(path, text):
    loaded = library.load(library.resolve(path, as_stored=True))
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    return loaded, loaded.model.generate(ids, max_new_tokens=16, do_sample=False)

generate(sys.argv[1], "a")  # libraries and kernels
with PeakMemory() as memory:
    loaded, ids = generate(sys.argv[2], "The capital of France is")
layers = [module for module in loaded.model.modules() if hasattr(module, "packed")]
print(json.dumps({"above": memory.peak_bytes - memory.start_bytes, "text": loaded.tokenizer.decode(ids[0]),
                  "packed": sum(layer.packed is not None for layer in layers), "layers": len(layers)}))
"""


def exported(model, folder):
    recipe = recipes.parse("gguf-q4_1")
    export.run(str(model), recipe, folder, to="gguf", progress=lambda *step: None)
    (path,) = folder.glob("*.gguf")
    return path


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is Linux's")
def test_loading_and_generating_takes_at_most_1_3_times_the_file(tmp_path):
    tiny.checkpoint("llama", tmp_path / "tiny")
    small, path = (
        exported(model, tmp_path / name) for name, model in (("a", tmp_path / "tiny"), ("b", "smollm2-135m"))
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "Paris" in found["text"] and found["packed"] == found["layers"] == 210
    size = path.stat().st_size
    assert 0.9 * size < found["above"] <= LIMIT * size, f"{found['above'] / size:.2f} x the file"

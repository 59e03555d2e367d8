"""Exports to compressed-tensors, GPTQ, AWQ, bitsandbytes and MLX, loaded by the other project's code in a
fresh process: the logits are those of the same codes.

Several runtimes round each dequantized weight to float16. Where one does, so does the model that it is
compared with, and what is left is the rounding of sums: then a code or scale in a wrong place cannot hide.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import matrix
import numpy as np
import pytest
import runtimes
import torch
from architectures import exact_logits
from matrix import ARCHITECTURES, Other

from qcore import recipes
from qcore.base.errors import InputError
from qcore.layers.modules import QuantEmbedding, QuantExperts, QuantLinear
from qcore.library import exports, resolve
from qcore.models.headers import read_header
from qcore.verbs import export
from qcore.verbs.prepare import find, prepare

NO_BF16 = "import bitsandbytes.nn.modules as m; m.has_avx512bf16 = lambda: False"  # the CPU's own kernel
RELATIVE = 1e-5  # of the largest logit: sums in another order
HALF = 2e-3  # products in float16, in which transformers keeps dequantized experts


@dataclass(frozen=True)
class Case:
    """A row of the matrix. `rounded` are the kinds of weights that the runtime rounds to float16; `relative`
    is the tolerance, as a share of the largest logit."""

    target: str
    recipe: str
    runtime: str = "transformers"
    needed: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()
    relative: float = RELATIVE
    relative_experts: float = RELATIVE  # of mixtures of experts
    setup: str = ""
    unread: Mapping[str, Other] = field(default_factory=dict)  # architectures that the runtime cannot load

    @property
    def name(self) -> str:
        return f"{self.target} {self.recipe} {self.runtime}"


CT = ("compressed_tensors",)
TRANSPOSED = {
    "gpt2": Other("transformers cannot load GPT-2 from GPTQ files; GPTQModel can.", "_init_weights")
}
# GPTQModel takes the padding token of the published models, which this small vocabulary lacks.
PADDING = Other("GPTQModel needs the vocabulary of the published Qwen2 models.", "padding")
CASES = [
    Case("compressed-tensors", "int4-g64-sym", needed=CT, rounded=("experts",), relative_experts=HALF),
    Case("compressed-tensors", "int4-g64", needed=CT, rounded=("linear",)),
    Case("bnb", "nf4-g64", needed=("bitsandbytes",), setup=NO_BF16),
]
OTHERS = [
    Case("compressed-tensors", "int8", needed=CT, rounded=("experts",), relative_experts=HALF),
    Case("bnb", "fp4-g64-dq", needed=("bitsandbytes",), setup=NO_BF16),
    Case("compressed-tensors", "gguf-q4_0", needed=CT, rounded=("experts",), relative_experts=HALF),
    Case("gptq", "int4-g64", needed=("gptqmodel",), rounded=("linear", "bias"), unread=TRANSPOSED),
    Case("gptq", "int3-g64-sym", needed=("gptqmodel",), rounded=("linear", "bias"), unread=TRANSPOSED),
    Case(  # computes in float16 throughout
        "gptq", "int4-g64", "gptqmodel", rounded=("linear", "bias"), relative=5e-3, unread={"qwen2": PADDING}
    ),
    Case("awq", "int4-g64", needed=("gptqmodel",), rounded=("linear", "bias")),
    Case("mlx", "int4-g64", "mlx-lm", relative=5e-4, relative_experts=5e-4),
    Case("mlx", "affine4-g64", "mlx-lm", relative=5e-4, relative_experts=5e-4),
    # a quantized embedding returns float16, so the model computes in float16
    Case("mlx", "int4-g64-head8", "mlx-lm", relative=1e-2, relative_experts=1e-2),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_other_project_computes_the_same(case: Case, originals, ids, tmp_path):
    check(case, originals, ids, tmp_path)


@pytest.mark.interop
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_another_runtime_computes_the_same(case: Case, originals, ids, tmp_path):
    check(case, originals, ids, tmp_path)


def check(case: Case, originals, ids, tmp_path):
    recipe = recipes.parse(case.recipe)
    folders, ours = {}, {}
    for architecture in ARCHITECTURES:
        original, folder = originals(architecture), tmp_path / architecture
        try:
            write(original, case.recipe, folder, case.target)
        except InputError as error:
            matrix.refused(case.target, architecture, case.runtime, recipe=case.recipe, error=error)
            continue
        exact = replace(recipe, activations="fp32")
        loaded = prepare(find(str(original), None), exact, progress=lambda *_: None).loaded
        folders[architecture], ours[architecture] = folder, reference(loaded.model, case.rounded, ids)
    theirs = runtimes.logits(case.runtime, folders, ids, needed=case.needed, setup=case.setup)
    for architecture in folders:
        relative = case.relative_experts if architecture == "mixtral" else case.relative
        if why := case.unread.get(architecture):
            found = theirs[architecture]
            matrix.unread(case.target, architecture, case.runtime, recipe=case.recipe, found=found, why=why)
            continue
        assert not isinstance(theirs[architecture], str), theirs[architecture]
        matrix.passed(
            case.target,
            architecture,
            case.runtime,
            recipe=case.recipe,
            ours=ours[architecture],
            theirs=theirs[architecture],
            tolerance=relative * float(np.abs(ours[architecture]).max()),
        )


def write(original: Path, recipe: str, folder: Path, target: str) -> dict:
    return export.run(str(original), recipes.parse(recipe), folder, to=target, progress=lambda *_: None)


def reference(model: torch.nn.Module, rounded: tuple[str, ...], ids: list[int]) -> np.ndarray:
    """The logits of the model's codes, dequantized and multiplied in float32; the kinds `rounded` in float16
    before that."""

    def seen(tensor, kind):
        return tensor.half().float() if kind in rounded else tensor

    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight.data = seen(module.quantized.dequantize(), "linear")
            if module.bias is not None:
                plain.bias.data = seen(module.bias.data, "bias")
            model.set_submodule(name, plain)
        elif isinstance(module, QuantEmbedding):
            plain = torch.nn.Embedding(*module.shape, _weight=module.quantized.dequantize())
            model.set_submodule(name, plain)
        elif isinstance(module, QuantExperts):
            owner, _, last = name.rpartition(".")
            dense = torch.stack([seen(expert.quantized.dequantize(), "experts") for expert in module.experts])
            owner = model.get_submodule(owner)
            delattr(owner, last)
            setattr(owner, last, dense)
    return exact_logits(model, ids)


# -- the folders


TARGETS = {
    "compressed-tensors": "int4-g64",
    "gptq": "int4-g64",
    "awq": "int4-g64",
    "bnb": "nf4-g64",
    "mlx": "int4-g64",
}


def stored(folder: Path) -> dict:
    return read_header(folder / "model.safetensors")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_tied_weights_are_stored_once_with_the_flag_that_says_so(target, architecture, originals, tmp_path):
    """sglang#2935: `KeyError: lm_head.weight`, or the head written twice."""
    write(originals(architecture), TARGETS[target], tmp_path / "out", target)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    heads = [name for name in stored(tmp_path / "out") if name.startswith(("lm_head", "model.embed_tokens"))]
    assert config["tie_word_embeddings"] == (len(heads) == 1) == (architecture == "llama-tied")


@pytest.mark.parametrize("target", TARGETS)
def test_a_rotated_model_has_its_head_apart(target, originals, tmp_path):
    write(originals("llama-tied"), f"rot-{TARGETS[target]}", tmp_path / "out", target)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(stored(tmp_path / "out"))


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "mlx"])
def test_a_quantized_embedding_is_refused(target, originals, tmp_path):
    """vllm#45535: a quantized input embedding is taken for a float one."""
    with pytest.raises(InputError, match="quantized embedding.*Leave -head8 out"):
        write(originals("llama"), f"{TARGETS[target]}-head8", tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "listed"),
    [
        ("compressed-tensors", lambda config: config["quantization_config"]["ignore"]),
        ("awq", lambda config: config["quantization_config"]["modules_to_not_convert"]),
        ("bnb", lambda config: config["quantization_config"]["llm_int8_skip_modules"]),
    ],
    ids=["compressed-tensors", "awq", "bnb"],
)
def test_the_skip_list_is_stored(target, listed, originals, tmp_path):
    """AutoAWQ#589: skipped modules are initialized at random on load."""
    recipe = recipes.parse(TARGETS[target]).with_modules(skip=("layers.0.mlp",))
    export.run(str(originals("llama-tied")), recipe, tmp_path / "out", to=target, progress=lambda *_: None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    skipped = {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert set(listed(config)) == skipped | {"lm_head"}
    assert {f"{name}.weight" for name in skipped} <= set(stored(tmp_path / "out"))


def test_gptq_names_skipped_layers_to_each_reader(originals, tmp_path):
    recipe = recipes.parse("int4-g64").with_modules(skip=("layers.0.mlp.down_proj",))
    export.run(str(originals("llama")), recipe, tmp_path / "out", to="gptq", progress=lambda *_: None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["dynamic"] == {r"-:^model\.layers\.0\.mlp\.down_proj$": {}}
    (quantized,) = config["modules_in_block_to_quantize"]
    assert len(quantized) == 13 and "model.layers.0.mlp.down_proj" not in quantized


def test_weights_are_counted_and_not_words(originals, tmp_path):
    """hub-docs#2704: the hub shows the number of packed integers."""
    write(originals("mixtral"), "int4-g64-sym", tmp_path / "out", "compressed-tensors")
    size = int.from_bytes((tmp_path / "out" / "model.safetensors").read_bytes()[:8], "little")
    header = json.loads((tmp_path / "out" / "model.safetensors").read_bytes()[8 : 8 + size])
    assert int(header["__metadata__"]["total_parameters"]) == resolve(str(originals("mixtral"))).parameters


@pytest.mark.parametrize(
    ("recipe", "target", "words"),
    [
        ("fp32", "gptq", "does not quantize"),
        ("bnb-nf4", "bnb", "another library"),
        ("int8-dynamic", "compressed-tensors", "activations.*nearest recipe is int8"),
        ("kmeans4", "awq", "kmeans4"),
        ("auto-4.25bpw", "gptq", "one format for all"),
        ("int3", "awq", "int4-g64"),
    ],
)
def test_a_recipe_that_a_target_cannot_express_is_refused_before_any_work(
    recipe, target, words, originals, tmp_path
):
    with pytest.raises(InputError, match=words):
        write(originals("llama"), recipe, tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.row("31")
def test_a_killed_export_goes_on_after_its_last_whole_file(originals, tmp_path, monkeypatch):
    target = exports.load("compressed-tensors")
    monkeypatch.setattr(type(target), "shard_bytes", 40_000)
    model = str(originals("llama"))
    write(model, "int4-g64", tmp_path / "whole" / "small", "compressed-tensors")
    encoded: list[tuple[int, int]] = []
    encode = type(target).encode

    def counted(self, weight):
        if not weight.codes.is_meta:
            encoded.append(weight.shape)
            if len(encoded) == 9:
                raise KeyboardInterrupt
        return encode(self, weight)

    monkeypatch.setattr(type(target), "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        write(model, "int4-g64", tmp_path / "resumed" / "small", "compressed-tensors")
    assert not (tmp_path / "resumed" / "small").exists()
    encoded.extend([(0, 0)] * 10)  # no further interruption
    before = len(encoded)
    write(model, "int4-g64", tmp_path / "resumed" / "small", "compressed-tensors")
    assert len(encoded) - before < 14, "finished files were written again"
    whole, resumed = (tmp_path / each / "small" for each in ("whole", "resumed"))
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in resumed.iterdir())
    for name in names:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    index = json.loads((resumed / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_parameters"] == resolve(model).parameters
    assert len(set(index["weight_map"].values())) > 2


def test_data_is_aligned_so_that_readers_can_use_it_where_it_is_mapped(originals, tmp_path):
    write(originals("llama"), "int4-g64", tmp_path / "out", "compressed-tensors")
    for name, tensor in stored(tmp_path / "out").items():
        assert tensor.start % 64 == 0 or tensor.nbytes % 64, name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("architecture", ["llama-tied", "llama-bias"])
def test_qcore_reads_its_own_exports_with_the_same_codes(target, architecture, originals, ids, tmp_path):
    original = str(originals(architecture))
    write(original, TARGETS[target], tmp_path / "out", target)
    back = prepare(find(str(tmp_path / "out"), as_stored=True), None, progress=lambda *_: None).loaded.model
    ours = prepare(
        find(original, None), recipes.parse(TARGETS[target]), progress=lambda *_: None
    ).loaded.model
    wanted = {name: module for name, module in ours.named_modules() if isinstance(module, QuantLinear)}
    found = {name: module for name, module in back.named_modules() if isinstance(module, QuantLinear)}
    assert wanted.keys() == found.keys() and len(found) == 14
    for name, module in wanted.items():
        assert torch.equal(module.quantized.unpacked_codes(), found[name].quantized.unpacked_codes()), name
        assert torch.equal(module.quantized.dequantize(), found[name].quantized.dequantize()), name
    assert np.array_equal(reference(back, (), ids), reference(ours, (), ids))

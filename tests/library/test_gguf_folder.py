"""GGUF files: transformers' own loader computes the same from them, what llama.cpp cannot compute is refused
before any work, and a killed export continues with the same bytes."""

import json
from copy import deepcopy

import gguf
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from qcore import library
from qcore.base.errors import InputError, UnavailableError
from qcore.cli import main
from qcore.interop import ggml, gguf_names
from qcore.library import companions, gguf_folder
from qcore.library.parameters import LoadedParameters
from qcore.recipes import parse
from qcore.verbs import export, quantize

SIZES = dict(
    vocab_size=tiny.VOCABULARY,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=None,
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, head_dim=16),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "gemma2": Gemma2Config(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=16),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=16),
    "qwen3-moe": Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        head_dim=16,
    ),
}
IDS = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(1))


def silent(*step):
    pass


def make(kind, folder, **changes):
    """Save a model of `CONFIGS` with norms and biases that are not the ones and zeros that they start as."""
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[kind])
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter)) if parameter.ndim == 1 else parameter.mul_(4)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def file_of(folder):
    (path,) = folder.glob("*.gguf")
    return path


def settings(path):
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def loaded_by_transformers(path, kind):
    """Its loader does not read every setting of these architectures, so some get the original's config."""
    config = (
        {} if kind in ("llama", "llama-tied", "mistral", "qwen2") else {"config": deepcopy(CONFIGS[kind])}
    )
    return AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        **config,
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("recipe", ["fp32", "int8-g32-sym"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_loads_the_file_and_computes_the_same(kind, recipe, tmp_path):
    source, out = make(kind, tmp_path / "model"), tmp_path / "out"
    result = export.run(source, parse(recipe), out, to="gguf", progress=silent)
    assert result["files"] == [file_of(out).name] and result["to"] == "gguf"
    original = library.load(source).model
    if recipe != "fp32":
        made = quantize_in_memory(source, recipe)
        weights = dict(original.named_parameters())
        for entry in made.entries:
            if entry.format is not None and entry.shares is None:
                experts = range(entry.experts) if entry.experts else [None]
                rows = [made.read(entry, expert).dequantize() for expert in experts]
                weights[entry.name].data.copy_(torch.stack(rows) if entry.experts else rows[0])
    found, wanted = logits(loaded_by_transformers(file_of(out), kind)), logits(original)
    assert wanted.std() > 0.2 and (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


def quantize_in_memory(source, recipe):
    import qcore

    return LoadedParameters(qcore.quantize(source, recipe))


def test_codes_are_the_recipe_s_own_with_rows_in_llama_cpp_s_order(tmp_path):
    source, out = make("llama", tmp_path / "model"), tmp_path / "out"
    export.run(source, parse("gguf-q4_0"), out, to="gguf", progress=silent)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file_of(out)).tensors}
    made = quantize_in_memory(source, "gguf-q4_0")
    entries = {entry.name: entry for entry in made.entries}
    for name, ours, heads in (
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight", 4),
        ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight", 2),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight", None),
    ):
        rows = ggml.encode(made.read(entries[ours]))
        rows = rows if heads is None else rows[gguf_names.interleaved(len(rows), heads)]
        assert stored[name].tensor_type.name == "Q4_0"
        assert np.array_equal(stored[name].data, rows.numpy())


def test_a_saved_folder_is_exported_with_its_own_codes(tmp_path):
    source = make("llama-tied", tmp_path / "model")
    quantize.run(source, parse("int8-g32-sym-head8"), tmp_path / "saved", progress=silent)
    export.run(str(tmp_path / "saved"), None, tmp_path / "a", to="gguf", progress=silent)
    export.run(source, parse("int8-g32-sym-head8"), tmp_path / "b", to="gguf", progress=silent)
    a, b = (gguf.GGUFReader(file_of(tmp_path / name)).tensors for name in "ab")
    assert [(each.name, each.tensor_type) for each in a] == [(each.name, each.tensor_type) for each in b]
    assert all(np.array_equal(one.data, other.data) for one, other in zip(a, b, strict=True))
    embedding = next(each for each in a if each.name == "token_embd.weight")
    assert embedding.tensor_type.name == "Q8_0" and "output.weight" not in {each.name for each in a}


def test_llama3_scaling_is_a_tensor_of_its_own(tmp_path):
    """Without it llama.cpp counts one tensor too few."""
    source = make("llama", tmp_path / "model", rope_parameters=LLAMA3)
    export.run(source, parse("fp32"), tmp_path / "out", to="gguf", progress=silent)
    tensors = {each.name: each.data for each in gguf.GGUFReader(file_of(tmp_path / "out")).tensors}
    plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    scaled = library.load(source).model.model.rotary_emb.inv_freq
    assert np.allclose(tensors["rope_freqs.weight"], plain / scaled, rtol=1e-5)
    assert tensors["rope_freqs.weight"].max() == 8 and tensors["rope_freqs.weight"].min() == 1


def test_everything_around_the_weights(tmp_path):
    source = make("llama", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [257, 10]}')
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n")
    out = tmp_path / "out"
    result = export.run(source, parse("int8-g32-sym"), out, to="gguf", progress=silent)
    found = settings(file_of(out))
    assert found["general.license"] == "mit" and found["general.file_type"] == 7 and result["notes"] == []
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (257, 10)
    assert found["tokenizer.ggml.pre"] == "gpt-2" and found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.ggml.token_type"][256] == 3 and len(found["tokenizer.ggml.tokens"]) == 258
    names = {path.name for path in out.iterdir()}
    assert {"tokenizer.json", "README.md", "generation_config.json", "chat_template.jinja"} <= names
    card = (out / "README.md").read_text()
    assert "license: mit" in card and "qcore export model --to gguf --recipe int8-g32-sym --out out" in card
    marker = json.loads((out / "qcore-export.json").read_text())
    assert marker["target"] == "gguf" and marker["from"]["model"] == source
    assert set(marker["sha256"]) == {file_of(out).name}
    assert sum(row["weights"] for row in marker["ledger"]["rows"]) == library.resolve(source).parameters
    with pytest.raises(InputError, match="not empty"):
        export.run(source, parse("fp32"), out, to="gguf", progress=silent)
    export.run(source, parse("fp16"), out, to="gguf", overwrite=True, progress=silent)
    assert settings(file_of(out))["general.file_type"] == 1


def test_a_sixteen_bit_model_stays_in_sixteen_bits(tmp_path):
    source = make("llama", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(source)
    export.run(source, None, tmp_path / "out", to="gguf", progress=silent)
    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(file_of(tmp_path / "out")).tensors}
    assert types["token_embd.weight"] == types["blk.0.ffn_up.weight"] == "BF16"
    assert types["blk.0.attn_norm.weight"] == "F32"


REFUSED = {
    "an unknown rule of splitting": ("llama", "fp32", {}, "no name for the rule"),
    "integer zero points": ("llama", "int4-g32", {}, "integer zero points"),
    "a learned table": ("llama", "kmeans4-g64", {}, "learned table"),
    "another library": ("llama", "bnb-nf4", {}, "another library's format"),
    "an activation": ("llama", "fp32", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "a rotary scaling": ("qwen3", "fp32", {"rope_parameters": LLAMA3}, "rope_type = 'llama3'"),
    "weights of experts": ("qwen3-moe", "fp32", {"norm_topk_prob": False}, "norm_topk_prob = False"),
    "a rotated tied head": ("gemma2", "rot-int8-g32-sym", {}, "output head of its own"),
    "a bias": ("qwen3", "fp32", {"attention_bias": True}, "no place for the bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused_before_any_work(case, tmp_path, monkeypatch, capsys):
    kind, recipe, changes, message = REFUSED[case]
    source = make(kind, tmp_path / "model", **changes)
    if case == "an unknown rule of splitting":
        path = tmp_path / "model" / "tokenizer.json"
        record = json.loads(path.read_text())
        split = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
        record["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, record["pre_tokenizer"]]}
        path.write_text(json.dumps(record))
    monkeypatch.setattr(gguf_folder._Gguf, "save", None)
    words = ["export", source, "--to", "gguf", "--recipe", recipe, "--out", str(tmp_path / "out")]
    assert main.main(words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.row("31")
def test_a_killed_export_continues_with_the_same_bytes(tmp_path, monkeypatch):
    source, out = make("llama", tmp_path / "model"), tmp_path / "out"
    recipe = parse("gguf-q4_1")
    export.run(source, recipe, tmp_path / "whole", to="gguf", progress=silent)
    monkeypatch.setattr(gguf_folder, "_FLUSHED", 1)
    made, encode = [], ggml.encode

    def dies(weight):
        made.append(weight.shape)
        if len(made) == 6:
            raise KeyboardInterrupt  # as by Ctrl-C or a kill: nothing is tidied up
        return encode(weight)

    monkeypatch.setattr(ggml, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        export.run(source, recipe, out, to="gguf", progress=silent)
    assert not out.exists()
    export.run(source, recipe, out, to="gguf", progress=silent)
    assert len(made) == 6 + 14 - 5  # the five finished matrices are not made again
    assert file_of(out).read_bytes() == file_of(tmp_path / "whole").read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.row("33")
def test_a_disk_without_room_is_named_before_writing(tmp_path, monkeypatch):
    source = make("llama", tmp_path / "model")

    def full(folder, nbytes):
        raise UnavailableError(f"no room for {nbytes}")

    monkeypatch.setattr(companions, "check_room", full)
    with pytest.raises(UnavailableError, match="no room"):
        export.run(source, parse("fp32"), tmp_path / "out", to="gguf", progress=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ignored", [[], [r"^mtp\."]], ids=["unknown", "ignored"])
def test_tensors_beside_the_model_are_listed(ignored, tmp_path, monkeypatch):
    """Heads that predict further tokens must not vanish in silence, whether the class knows them or not."""
    folder = tmp_path / "model"
    source = make("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"mtp.0.weight": torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", ignored)
    found = library.resolve(source)
    assert companions.unclaimed(found) == ("mtp.0.weight",)
    assert "no place for it: mtp.0.weight (4 weights)." in found.description
    result = export.run(source, parse("fp32"), tmp_path / "out", to="gguf", progress=silent)
    assert any("mtp.0.weight" in note for note in result["notes"])


def test_experts_of_a_layer_are_tensors_that_llama_cpp_stacks(tmp_path):
    source = make("qwen3-moe", tmp_path / "model")
    export.run(source, parse("int8-g32-sym"), tmp_path / "out", to="gguf", progress=silent)
    tensors = {each.name: each for each in gguf.GGUFReader(file_of(tmp_path / "out")).tensors}
    made = quantize_in_memory(source, "int8-g32-sym")
    entry = next(each for each in made.entries if each.name.endswith("layers.0.mlp.experts.gate_up_proj"))
    for name, rows in (("gate", slice(0, 32)), ("up", slice(32, 64))):
        wanted = torch.stack([ggml.encode(made.read(entry, i))[rows] for i in range(4)])
        assert np.array_equal(tensors[f"blk.0.ffn_{name}_exps.weight"].data, wanted.numpy())
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"


def test_settings_of_an_architecture(tmp_path):
    """Each number that llama.cpp computes with, where the config differs from llama.cpp's defaults."""
    export.run(make("gemma2", tmp_path / "a"), parse("fp32"), tmp_path / "g", to="gguf", progress=silent)
    found = settings(file_of(tmp_path / "g"))
    assert {
        key: found[f"gemma2.{key}"] for key in ("attn_logit_softcapping", "attention.sliding_window")
    } == {"attn_logit_softcapping": 50.0, "attention.sliding_window": 16}
    export.run(make("qwen3-moe", tmp_path / "b"), parse("fp32"), tmp_path / "q", to="gguf", progress=silent)
    found = settings(file_of(tmp_path / "q"))
    assert found["qwen3moe.expert_count"] == 4 and found["qwen3moe.expert_used_count"] == 2
    assert found["qwen3moe.expert_feed_forward_length"] == 32
    assert found["qwen3moe.attention.key_length"] == 16

"""Folders of models as people have them: what can be read gives the same model, and what cannot ends in one
sentence that names the file, the field and its value."""

import json
import re
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MptConfig

from qcore import library
from qcore.base.errors import InputError
from qcore.evaluation.choices import ask
from qcore.evaluation.generation import generate_text
from qcore.evaluation.perplexity import evaluate
from qcore.evaluation.questions import load_questions
from qcore.measurement.throughput import measure
from qcore.models.checkpoint import INDEX, SINGLE
from qcore.models.wrapped_names import unwrapped

IDS = torch.arange(24)[None]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("people") / "llama")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def edit(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def rename(folder, change):
    tensors = {change(name): tensor for name, tensor in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


WRAPPED = {
    "DataParallel": (lambda name: f"module.{name}", r"module \(DataParallel\)"),
    "torch.compile": (lambda name: f"_orig_mod.{name}", r"_orig_mod \(torch.compile\)"),
    "both": (lambda name: f"module._orig_mod.{name}", r"_orig_mod \(torch.compile\) and module"),
    "both, the other way": (
        lambda name: f"_orig_mod.module.{name}",
        r"_orig_mod \(torch.compile\) and module",
    ),
    "a compiled block": (lambda name: name.replace("layers.0.", "layers.0._orig_mod."), "torch.compile"),
    "FSDP": (lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."), "FSDP"),
    "an adapter": (lambda name: f"base_model.model.{name}", "an adapter"),
}


@pytest.mark.parametrize(("change", "words"), WRAPPED.values(), ids=WRAPPED)
def test_checkpoints_saved_from_a_wrapper(original, folder, change, words):
    rename(folder, change)
    loaded = library.load(folder)
    assert torch.equal(loaded.model(IDS).logits, library.load(original).model(IDS).logits)
    assert loaded.checkpoint.tensors.keys() == library.resolve(original).tensors.keys()
    assert re.search(words, loaded.checkpoint.description)


def test_names_that_only_partly_come_from_a_wrapper(folder):
    rename(folder, lambda name: f"module.{name}" if "norm" in name else name)
    with pytest.raises(InputError, match="layers.0.input_layernorm.weight are missing"):
        library.resolve(folder)


def test_two_tensors_of_one_name_behind_a_wrapper(original):
    tensors = library.resolve(original).tensors
    doubled = {**tensors, **{f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}}
    with pytest.raises(InputError, match="two of them are called"):
        unwrapped(doubled)


SAME = {
    "return_dict": {"return_dict": False},
    "use_return_dict": {"use_return_dict": False},
    "outputs": {"output_attentions": True, "output_hidden_states": True, "torchscript": True},
    "no cache": {"use_cache": False},
    "null architectures": {"architectures": None},
    "null rotary embedding": {"rope_scaling": None},
    "fields of other tools": {"unsloth_version": "1", "task_specific_params": {"a": [1, None]}},
}


@pytest.mark.parametrize("values", SAME.values(), ids=SAME)
def test_settings_that_do_not_change_the_model(original, folder, values):
    edit(folder, **values)
    loaded, plain = library.load(folder), library.load(original)
    ids = torch.arange(100)
    assert evaluate(loaded.model, ids, window=50).nll_sum == evaluate(plain.model, ids, window=50).nll_sum
    assert generate_text(loaded.model, loaded.tokenizer, "Hi", 3).tokens


BROKEN_CONFIG = {
    "a text for an id": (
        {"eos_token_id": "257"},
        "eos_token_id is '257', but it must be a whole number, a list or null",
    ),
    "null for a switch": ({"mlp_bias": None}, "mlp_bias is None, but it must be true or false"),
    "a text for a number": ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', but it must be a number"),
    "an unknown activation": ({"hidden_act": "wow"}, "it names 'wow', which transformers does not know"),
    "padding beyond": ({"pad_token_id": 9999}, "pad_token_id is 9999, which is not one of the 258 tokens"),
}


@pytest.mark.parametrize(("values", "message"), BROKEN_CONFIG.values(), ids=BROKEN_CONFIG)
def test_settings_that_are_refused(folder, values, message):
    edit(folder, **values)
    with pytest.raises(InputError, match=message):
        library.resolve(folder)


BROKEN_GENERATION = {
    "a text": ({"eos_token_id": "257"}, "eos_token_id = '257', but ids of tokens are whole numbers"),
    "texts": ({"eos_token_id": [257, "10"]}, "ids of tokens are whole numbers"),
    "an object": ({"eos_token_id": {"a": 1}}, "ids of tokens are whole numbers"),
    "a list of pads": ({"pad_token_id": [1]}, r"pad_token_id = \[1\], but it must be one whole number"),
    "a value that is refused": (
        {"early_stopping": "x"},
        "generation_config.json cannot be read: .early_stopping",
    ),
}


@pytest.mark.parametrize(("values", "message"), BROKEN_GENERATION.values(), ids=BROKEN_GENERATION)
def test_generation_settings_that_are_refused(folder, values, message):
    edit(folder, "generation_config.json", **values)
    with pytest.raises(InputError, match=message):
        library.load(folder)


def test_generation_settings_that_are_not_used(folder):
    edit(folder, "generation_config.json", temperature="hot", max_length="20", num_beams=4, foo=1)
    loaded = library.load(folder)
    assert len(generate_text(loaded.model, loaded.tokenizer, "Hi", 3).tokens) == 3


def write(file, content):
    return lambda folder: (folder / file).write_text(content)


BROKEN_TOKENIZERS = {
    "longest text": (
        lambda f: edit(f, "tokenizer_config.json", model_max_length="big"),
        "model_max_length = 'big'",
    ),
    "a list": (write("tokenizer.json", "[]"), "tokenizer.json of .* does not hold a JSON object"),
    "LFS": (write("tokenizer.json", POINTER), "tokenizer.json only points to a file in Git LFS"),
    "LFS, the model": (write("tokenizer.model", POINTER), "tokenizer.model only points to a file in Git LFS"),
    "a null map": (
        write("special_tokens_map.json", "null"),
        "special_tokens_map.json must hold a JSON object",
    ),
    "only settings": (
        lambda f: (f / "tokenizer.json").unlink(),
        "no tokenizer.json and no other file with a vocab",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_TOKENIZERS.values(), ids=BROKEN_TOKENIZERS)
def test_tokenizers_that_are_refused(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message):
        library.load(folder)


def test_a_tokenizer_alone_and_templates_of_their_own(folder):
    (folder / "tokenizer_config.json").unlink()
    assert library.load(folder).tokenizer("Hi")["input_ids"]
    (folder / "chat_template.json").write_text('{"chat_template": "older"}')
    assert library.load(folder).tokenizer.chat_template == "older"
    (folder / "chat_template.jinja").write_text("newer")
    assert library.load(folder).tokenizer.chat_template == "newer"


def test_a_chat_template_that_is_no_text(folder):
    edit(folder, "tokenizer_config.json", chat_template=5)
    loaded = library.load(folder)
    with pytest.raises(InputError, match="chat template of this model is 5, not a text"):
        generate_text(loaded.model, loaded.tokenizer, "Hi", 3, chat=True)


def nested(folder):
    shutil.move(folder, folder.parent / "moved")
    folder.mkdir()
    shutil.move(folder.parent / "moved", folder / "snapshot")


def shards_without_index(folder):
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")


def absent_shard(folder):
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text(
        json.dumps(
            {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        )
    )


BROKEN_FOLDERS = {
    "LFS weights": (write(SINGLE, POINTER), "model.safetensors only points to a file in Git LFS"),
    "LFS config": (write("config.json", POINTER), "config.json only points to a file in Git LFS"),
    "a web page": (write(SINGLE, "<!DOCTYPE html><html>" + " " * 99), "model.safetensors is a web page"),
    "no index": (shards_without_index, "one of 2 files, but no model.safetensors.index.json"),
    "an absent shard": (absent_shard, "lacks model-00002-of-00002.safetensors"),
    "the folder above": (nested, "Inside it, snapshot has one"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_FOLDERS.values(), ids=BROKEN_FOLDERS)
def test_folders_that_are_refused(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message):
        library.resolve(folder)


def test_a_vocabulary_padded_beyond_the_tokenizer(folder):
    tensors = load_file(folder / SINGLE)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.zeros(6, 64)])
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    edit(folder, vocab_size=264)
    loaded = library.load(folder)
    assert loaded.model(IDS).logits.shape[-1] == 264
    assert generate_text(loaded.model, loaded.tokenizer, "Hi", 3).tokens


@pytest.mark.parametrize("alibi", [True, False], ids=["alibi", "learned"])
def test_mpt_has_a_fixed_length(alibi, tmp_path):
    config = MptConfig(
        d_model=32,
        n_heads=2,
        n_layers=1,
        expansion_ratio=2,
        max_seq_len=64,
        vocab_size=258,
        attn_config={"alibi": alibi},
    )
    model, tokenizer = AutoModelForCausalLM.from_config(config).eval(), tiny.tokenizer()
    with pytest.raises(InputError, match="window of 128 tokens is longer than the 64"):
        evaluate(model, torch.arange(200), window=128)
    assert evaluate(model, torch.arange(200), window=64).tokens_scored == 199
    made = generate_text(model, tokenizer, "a" * 100, 8)
    assert "only its last 56 were read" in made.notes[0]
    with pytest.raises(InputError, match="more than the 64 positions"):
        measure(model, 60, 8, repeats=1)
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "a" * 80, "choices": ["b", "c"], "answer": 0}))
    with pytest.raises(InputError, match="this model can read 64"):
        ask(model, tokenizer, load_questions(tmp_path / "q.jsonl").questions)

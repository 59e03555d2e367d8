"""config.json from strangers: code, quantized checkpoints, absurd sizes, contradictions to the weights."""

import json
import math

import pytest
import tiny
import torch
from edits import edit
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, RwkvConfig

import qcore
from qcore import library
from qcore.base.errors import InputError
from qcore.models import config
from qcore.models.foreign_folder import METHODS
from tests.zoo import build


@pytest.mark.parametrize(
    "field, value, tensor",
    [
        ("num_hidden_layers", 1, "model.layers.1"),
        ("num_hidden_layers", 3, "model.layers.2"),
        ("intermediate_size", 96, "model.layers.0.mlp"),
        ("num_key_value_heads", 4, "self_attn.k_proj"),
        ("vocab_size", 300, "weight"),
        ("hidden_size", 32, "weight"),
    ],
    ids=lambda value: str(value),
)
def test_a_config_that_contradicts_the_weights(folder, field, value, tensor):
    edit(folder / "config.json", lambda config: config | {field: value})
    with pytest.raises(InputError, match=f"does not match its config.json.*{tensor}"):
        library.resolve(folder)


@pytest.mark.row("3")
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_code_is_refused(folder, file, nested):
    wish = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    edit(folder / file, lambda config: config | ({"text_config": wish} if nested else wish))
    with pytest.raises(InputError, match=f"requires code of its own .auto_map in {file}"):
        library.resolve(folder)


@pytest.mark.row("3")
def test_fields_that_choose_code_are_stripped_and_named(folder):
    wishes = {
        "trust_remote_code": True,
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "rope_scaling": {"trust_remote_code": True, "rope_type": "default"},
        "transformers_weights": "../../secret.bin",
    }
    edit(folder / "config.json", lambda config: config | wishes)
    checkpoint = library.resolve(folder)
    assert (
        "Ignored in its config.json: _attn_implementation, attn_implementation, transformers_weights, "
        "trust_remote_code" in checkpoint.description
    )
    assert "kernel" not in json.dumps(checkpoint.config)
    model = library.load(checkpoint).model
    assert "/" not in model.config._attn_implementation


@pytest.mark.row("12")
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "gguf"])
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_quantized_checkpoints_are_refused_by_name(folder, method, nested):
    entry = {"quantization_config": {"quant_method": method, "bits": 4}}
    edit(folder / "config.json", lambda config: config | ({"text_config": entry} if nested else entry))
    with pytest.raises(InputError, match=f"already quantized .{method}.") as refused:
        library.resolve(folder)
    assert "Start from the original model" in str(refused.value)
    assert ("file:NAME measures it as it is" in str(refused.value)) == (method != "gguf")


def test_the_forms_that_are_read_are_those_that_refusals_name():
    assert {*config.READ_AS_STORED, *config.LOW_PRECISION} == set(METHODS)


@pytest.mark.row("12")
@pytest.mark.parametrize("file, name", [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_older_quantized_checkpoints(folder, file, name):
    (folder / file).write_text("{}")
    with pytest.raises(InputError, match=f"already quantized .{name}."):
        library.resolve(folder)


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter"):
        library.resolve(folder)


@pytest.mark.row("10")
@pytest.mark.parametrize(
    "field, value",
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", "2"),
        ("num_hidden_layers", 2.0),
        ("num_hidden_layers", True),
        ("vocab_size", 1 << 31),
        ("hidden_size", 1 << 40),
        ("max_position_embeddings", 1 << 60),
        ("num_attention_heads", 0),
        ("intermediate_size", [64, 1 << 40]),
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_anything_is_built(folder, field, value, monkeypatch):
    monkeypatch.setattr("qcore.models.assembly.assemble", lambda *args: pytest.fail("something was built"))
    edit(folder / "config.json", lambda config: config | {field: value})
    with pytest.raises(InputError, match=f"config.json has {field} = "):
        library.resolve(folder)


@pytest.mark.row("10")
@pytest.mark.parametrize(
    "field, value, message",
    [("num_hidden_layers", 2000, "2000 layers"), ("vocab_size", 1 << 23, "an embedding of 8388608 x 64")],
)
def test_sizes_that_the_weights_cannot_fill(folder, field, value, message, monkeypatch):
    monkeypatch.setattr("qcore.models.assembly.assemble", lambda *args: pytest.fail("something was built"))
    edit(folder / "config.json", lambda config: config | {field: value})
    with pytest.raises(InputError, match=message):
        library.resolve(folder)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("lama", "Did you mean llama"),
        ("no_such_thing_at_all_xyz", "Unknown architecture"),
        (None, "does not name a model_type"),
        ("bert", "should|does not|not what|cannot"),
        ("clip", "does not predict the next token|valid"),
    ],
    ids=str,
)
def test_architectures(folder, kind, message):
    edit(folder / "config.json", lambda config: config | {"model_type": kind})
    with pytest.raises(InputError, match=message):
        library.resolve(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "no-such-activation"},
        {"rope_parameters": {"rope_type": "bent"}},
        {"rms_norm_eps": "small"},
        {"num_attention_heads": 5},
        {"torch_dtype": "float3"},
        {"layer_types": ["full_attention"]},
        {"pad_token_id": 10**9},
    ],
    ids=lambda change: next(iter(change)),
)
def test_values_that_make_no_sense_are_one_sentence_or_harmless(folder, change):
    edit(folder / "config.json", lambda config: config | change)
    try:
        checkpoint = library.resolve(folder)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert checkpoint.parameters == 107072


def test_an_encoder_that_the_architecture_does_not_have(folder):
    """The flag refused a model whose class has no encoder; generation would have looked for one."""
    edit(folder / "config.json", lambda config: config | {"is_encoder_decoder": True})
    loaded = library.load(library.resolve(folder))
    assert not loaded.model.config.is_encoder_decoder
    assert loaded.model.generate(torch.tensor([[1, 2]]), max_new_tokens=2).shape == (1, 4)


def test_a_model_with_an_encoder_is_refused_by_its_class(tmp_path):
    bart = CONFIG_MAPPING["bart"](vocab_size=258, d_model=32).to_dict()
    assert bart["is_encoder_decoder"]
    with pytest.raises(InputError, match="A bart model does not predict the next token"):
        config.to_transformers(bart)
    assert not config.to_transformers(bart | {"is_encoder_decoder": False}).is_encoder_decoder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}'], ids=repr)
def test_a_broken_config(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json"):
        library.resolve(folder)


def test_a_folder_that_qcore_saved_without_its_manifest(folder):
    edit(folder / "config.json", lambda config: config | {"quantization_config": {"quant_method": "qcore"}})
    with pytest.raises(InputError, match="qcore.json is missing"):
        library.resolve(folder)


@pytest.mark.row("2")
def test_local_folders_are_refused_in_public(folder):
    with pytest.raises(InputError, match="not accepted here"):
        library.resolve(str(folder), public=True)


@pytest.mark.parametrize("number", [{"__float__": "Infinity"}, float("inf")], ids=["tagged", "bare"])
def test_infinity_as_transformers_writes_it(tmp_path, number):
    """transformers writes the open end of a range as {"__float__": "Infinity"}: JSON has no infinity."""
    folder = build("mamba2", tmp_path / "original")
    edit(folder / "config.json", lambda config: config | {"time_step_limit": [0.0, number]})
    loaded = qcore.load(str(folder))
    assert list(loaded.model.config.time_step_limit) == [0.0, math.inf]
    saved = qcore.save(qcore.quantize(loaded, "bf16"), tmp_path / "saved")
    json.loads((saved / "config.json").read_text(), parse_constant=pytest.fail)  # strict JSON
    assert list(qcore.load(str(saved)).model.config.time_step_limit) == [0.0, math.inf]


def test_other_objects_with_such_a_key_stay_objects(folder):
    edit(folder / "config.json", lambda config: config | {"note": {"__float__": "10"}})
    assert library.resolve(folder).config["note"] == {"__float__": "10"}


def test_quantized_rwkv_computes_what_the_plain_model_does(tmp_path):
    """transformers halves its states every few layers and divides weights at the first call. Codes were not
    divided, so that the states of deep models shrank."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, vocab_size=258)
    plain = AutoModelForCausalLM.from_config(RwkvConfig(**sizes, rescale_every=1), dtype=torch.float32).eval()
    plain.save_pretrained(tmp_path / "rwkv")
    tiny.tokenizer().save_pretrained(tmp_path / "rwkv")
    ids = torch.arange(30)[None]
    made = qcore.quantize(qcore.load(str(tmp_path / "rwkv")), "int8").model
    with torch.no_grad():
        expected, found = plain(input_ids=ids).logits, made(input_ids=ids).logits
    assert (found - expected).norm() < 0.02 * expected.norm()

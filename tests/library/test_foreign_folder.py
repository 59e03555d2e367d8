"""Folders that other projects quantized, opened with their own codes, against the numbers these stand for."""

import json
import re
from dataclasses import replace

import foreign_folders as made
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig

from qcore import library
from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.interop import fp8, gptq, mxfp4
from qcore.layers.modules import QuantExperts, QuantLinear
from qcore.models.foreign_folder import METHODS
from qcore.verbs import checks

IDS = torch.arange(40)[None] * 6
FP8 = {"quant_method": "fp8", "weight_block_size": [made.BLOCK, made.BLOCK], "activation_scheme": "dynamic"}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {"num_bits": 8, "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}


def as_stored(folder):
    return library.load(library.resolve(folder, as_stored=True))


def linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def check_logits(loaded, values, kind="llama", tolerance=1e-3):
    """The logits are those of the plain model with `values` (module, weight) in its linear layers."""
    plain = tiny.sharp(kind)
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and name.rpartition(".")[2] != "gate":
            module.weight.data = values(name, module.weight.data)
    wanted = plain(IDS).logits
    assert (loaded.model(IDS).logits - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize(
    "form, recipe, words",
    [
        (made.as_gptq("int4-g32"), "int4-g32", "gptq int4-g32"),
        (made.as_gptq("int4-g32-sym", gptq.V1), "int4-g32-sym", "gptq int4-g32"),
        (made.as_gptq("int3-g32"), "int3-g32", "gptq int3-g32"),
        (made.as_gptq("int8"), "int8", "gptq int8"),
        (made.as_awq(), "int4-g32", "awq int4-g32"),
        (made.as_compressed(), "int4-g32", "compressed-tensors int4-g32"),
        (made.as_compressed("int8"), "int8", "compressed-tensors int8"),
        (made.as_bitsandbytes("int8"), "int8", "bitsandbytes int8"),
        (made.as_bitsandbytes("nf4-g64"), "nf4-g64", "bitsandbytes nf4"),
        (made.as_bitsandbytes("fp4-g64"), "fp4-g64", "bitsandbytes fp4"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_every_form_keeps_its_codes(tmp_path, form, recipe, words):
    folder = made.write(tmp_path / "model", *form)
    loaded = as_stored(folder)
    assert words in loaded.checkpoint.description and loaded.checkpoint.foreign == words.split()[0]
    originals = dict(tiny.sharp("llama").named_parameters())
    found = linears(loaded.model)
    assert len(found) == 14
    for name, layer in found.items():
        wanted, weight = made.codes(originals[f"{name}.weight"].data, recipe), layer.quantized
        assert torch.equal(weight.unpacked_codes(), wanted.unpacked_codes())
        assert torch.equal(weight.dequantize(), wanted.dequantize()), name
    check_logits(loaded, lambda name, weight: made.codes(weight, recipe).dequantize())
    row = next(row for row in loaded.ledger.rows if row.name == "model.layers.1.mlp.down_proj.weight")
    assert row.format == words and row.reason is None
    sizes = {name: tensor.nbytes for name, tensor in load_file(folder / "model.safetensors").items()}
    assert loaded.ledger.stored_bytes == sum(sizes.values())
    assert checks.check_model(str(folder)).is_quantized


def test_activation_order_is_dequantized_and_said_so(tmp_path):
    change, settings = made.as_gptq("int4-g32")

    def shuffled(module, weight):
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
        parts = change(module, weight[:, order])
        groups = parts["g_idx"].clone()
        parts["g_idx"][order] = groups
        unpacked = gptq.read({**parts, "g_idx": groups}, settings)
        codes = torch.empty_like(unpacked.codes)
        codes[:, order] = unpacked.codes
        return parts | {"qweight": gptq.pack_words(codes, 4).T.contiguous()}

    loaded = as_stored(made.write(tmp_path / "model", shuffled, {**settings, "desc_act": True}))

    def values(name, weight):
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
        held = torch.empty_like(weight)
        held[:, order] = made.codes(weight[:, order], "int4-g32").dequantize()
        return held

    check_logits(loaded, values, tolerance=1e-5)
    row = next(row for row in loaded.ledger.rows if row.name == "model.layers.1.mlp.down_proj.weight")
    assert row.format == "gptq int4-g32" and row.reason.startswith(
        "Dequantized to fp32: A GPTQ weight assigns"
    )


def test_ignored_modules_stay_floats_and_a_pattern_is_not_a_substring(tmp_path):
    change, settings = made.as_compressed(keep=("down_proj",))
    folder = made.write(tmp_path / "model", change, {**settings, "ignore": ["lm_head", "re:.*down_proj"]})
    loaded = as_stored(folder)
    rows = {row.name: row for row in loaded.ledger.rows}
    assert rows["model.layers.0.mlp.down_proj.weight"].format is None
    assert rows["model.layers.0.mlp.down_proj.weight"].reason == "Stored as F32."
    assert rows["model.layers.0.mlp.up_proj.weight"].format == "compressed-tensors int4-g32"
    # as an expression from the start of the name, and as a whole name, "proj" matches nothing
    made.set_config(
        folder, quantization_config={**settings, "ignore": ["lm_head", "down_proj", "re:down_proj"]}
    )
    assert len(linears(as_stored(folder).model)) == 12
    made.set_config(folder, quantization_config={**settings, "ignore": ["re:.*up_proj"]})
    with pytest.raises(
        InputError, match="stores model.layers.0.mlp.up_proj quantized, but its quantization_config"
    ):
        as_stored(folder)


def test_modules_with_settings_of_their_own(tmp_path):
    four, eight = made.as_gptq("int4-g32"), made.as_gptq("int8-g32-asym")

    def change(module, weight):
        return (eight if "down_proj" in module else four)[0](module, weight)

    settings = {**four[1], "dynamic": {"-:lm_head": {}, r"+:.*\.down_proj": {"bits": 8}}}
    loaded = as_stored(made.write(tmp_path / "model", change, settings))
    formats = {name.rpartition(".")[2]: layer.format for name, layer in linears(loaded.model).items()}
    assert formats["down_proj"] == Uniform(8, 32, False) and formats["up_proj"] == Uniform(4, 32, False)
    assert "gptq int4-g32, int8-g32" in loaded.checkpoint.description
    made.set_config(tmp_path / "model", quantization_config={**settings, "dynamic": {"-:(?>lm_head)": {}}})
    with pytest.raises(InputError, match="uses atomic group"):
        as_stored(tmp_path / "model")


def test_int8_with_quantized_activations_is_said_to_differ(tmp_path):
    loaded = as_stored(made.write(tmp_path / "model", made.as_int8, INT8))
    assert {layer.format for layer in linears(loaded.model).values()} == {Uniform(8, None, True)}
    assert "here only the weights are quantized" in loaded.checkpoint.description
    check_logits(loaded, lambda name, weight: _int8(weight))


def _int8(weight):
    parts = made.as_int8("", weight)
    return parts["weight"].float() * parts["weight_scale"].half().float()


@pytest.mark.parametrize("scales", ["blocks", "rows", "matrix"])
def test_eight_bit_floats_are_dequantized_and_said_so(tmp_path, scales):
    def change(module, weight):
        parts = made.as_fp8(module, weight)
        if scales == "blocks":
            return parts
        scale = weight.abs().amax(1, keepdim=True) if scales == "rows" else weight.abs().amax()
        scale = scale / 448
        return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}

    settings = FP8 if scales == "blocks" else {"quant_method": "fbgemm_fp8"}
    loaded = as_stored(made.write(tmp_path / "model", change, settings))
    check_logits(loaded, lambda name, weight: fp8.dequantize(change(name, weight), settings), tolerance=1e-5)
    row = next(row for row in loaded.ledger.rows if row.name == "model.layers.1.mlp.down_proj.weight")
    assert (
        row.reason == fp8.REASON
        and row.format.endswith("fp8")
        and fp8.REASON in loaded.checkpoint.description
    )
    assert row.bytes_after < 64 * 128 * 1.2


def test_blocks_of_eight_bit_floats_at_the_edge():
    weight, scale = torch.randn(70, 50).to(torch.float8_e4m3fn), torch.rand(3, 2)
    found = fp8.dequantize({"weight": weight, "weight_scale_inv": scale}, {"weight_block_size": [32, 32]})
    for row, column in ((0, 0), (31, 31), (32, 31), (69, 49), (64, 32)):
        assert found[row, column] == weight[row, column].float() * scale[row // 32, column // 32]
    with pytest.raises(InputError, match="3 x 2 scales, but"):
        fp8.dequantize({"weight": weight, "weight_scale_inv": scale.T}, {"weight_block_size": [32, 32]})
    with pytest.raises(InputError, match="has no scale"):
        fp8.dequantize({"weight": weight}, {})
    with pytest.raises(InputError, match="not finite"):
        fp8.dequantize({"weight": weight, "weight_scale": torch.tensor(float("nan"))}, {})


def test_experts_of_mxfp4_keep_their_codes(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    config = GptOssConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=3,
        num_experts_per_tok=2,
        vocab_size=tiny.VOCABULARY,
        layer_types=["full_attention"],
    )
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    plain.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    generator, state = torch.Generator().manual_seed(0), plain.state_dict()
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        groups = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*groups, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 125, groups, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        state[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, tmp_path / "model/model.safetensors")
    made.set_config(tmp_path / "model", quantization_config={"quant_method": "mxfp4"})
    plain.load_state_dict(state)
    loaded = as_stored(tmp_path / "model")
    experts = loaded.model.model.layers[0].mlp.experts
    assert isinstance(experts.gate_up_proj, QuantExperts)
    assert {each.format for each in experts.down_proj.experts} == {Codebook("kmeans4", 32)}
    assert torch.equal(experts.gate_up_proj[2], state["model.layers.0.mlp.experts.gate_up_proj"][2])
    experts.gate_up_proj.activations = experts.down_proj.activations = "fp32"  # as in the plain model
    wanted = plain(IDS).logits
    assert (loaded.model(IDS).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_mxfp4_outside_of_float16_is_dequantized():
    blocks = torch.randint(0, 256, (2, 1, 16), dtype=torch.uint8)
    scales = torch.tensor([[127 - 40], [127]], dtype=torch.uint8)
    with pytest.raises(InputError, match=re.escape("from 2^-40 to 2^0")):
        mxfp4.decode(blocks, scales)
    values = mxfp4.dequantize(blocks, scales)
    assert values[0, 1] == mxfp4.VALUES[int(blocks[0, 0, 0]) >> 4] * 2.0**-40
    with pytest.raises(InputError, match="not a number"):
        mxfp4.dequantize(blocks, torch.full((2, 1), 255, dtype=torch.uint8))


def test_experts_one_by_one_keep_their_codes(tmp_path):
    loaded = as_stored(made.write(tmp_path / "model", *made.as_gptq(), kind="moe"))
    experts = loaded.model.model.layers[1].mlp.experts
    weights = tiny.sharp("moe").model.layers[1].mlp.experts
    gate, up = weights.gate_up_proj[3].chunk(2)
    wanted = torch.cat([made.codes(part.data, "int4-g32").dequantize() for part in (gate, up)])
    assert torch.equal(experts.gate_up_proj[3], wanted)
    assert torch.equal(experts.down_proj[0], made.codes(weights.down_proj[0].data, "int4-g32").dequantize())
    row = next(row for row in loaded.ledger.rows if row.name == "model.layers.1.mlp.experts.down_proj")
    assert row.format == "gptq int4-g32" and row.reason is None


def test_what_cannot_be_read_is_refused(tmp_path):
    folder = made.write(tmp_path / "model", *made.as_gptq())
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]

    def refused(match, **changes):
        made.set_config(folder, **changes)
        with pytest.raises(InputError, match=match):
            as_stored(folder)

    refused("by another library .hqq. in a form", quantization_config={"quant_method": "hqq"})
    refused("names bitsandbytes, but no weight", quantization_config={"quant_method": "bitsandbytes"})
    refused("states 5 bits|do not fit|does not fit|damaged", quantization_config={**settings, "bits": 5})
    refused("rotates activations", quantization_config={**settings, "transform_config": {"R1": {}}})
    refused("'never_seen' is unknown", quantization_config={**settings, "checkpoint_format": "never_seen"})
    refused("gptq.*damaged|lacks|declares 7 layers", quantization_config=settings, num_hidden_layers=7)
    made.set_config(folder, quantization_config=settings, num_hidden_layers=2)
    as_stored(folder)
    with pytest.raises(InputError, match="already quantized .gptq."):
        library.resolve(folder)
    (folder / "config.json").write_text(json.dumps(tiny.CONFIGS["llama"].to_dict()))
    with pytest.raises(InputError, match="already quantized"):
        as_stored(folder)


def swap(tensors, module, other):
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        tensors[f"{module}.{part}"] = tensors[f"{other}.{part}"].clone()


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.scales"), "not all that a weight of gptq"),
        (lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.qweight"), "not all that a weight of gptq"),
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks the weights of model.norm.weight"),
        (lambda tensors: tensors.update(mtp=torch.zeros(1)), "mtp is not part of a llama model"),
        (
            lambda tensors: tensors["model.layers.0.mlp.up_proj.scales"].fill_(float("nan")),
            "model.layers.0.mlp.up_proj.weight.* is NaN",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.qzeros": torch.zeros(1, 4).int()}),
            "model.layers.0.mlp.up_proj.weight of .* cannot be read",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}),
            "stores model.norm.weight as I8",
        ),
        (
            lambda tensors: swap(tensors, "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj"),
            "up_proj.weight of .* has the shape .32, 64., but its config.json demands .128, 64.",
        ),
    ],
    ids=["scales", "codes", "missing", "extra", "nan", "zeros", "integers", "shape"],
)
def test_damaged_folders_are_refused(tmp_path, damage, match):
    folder = made.write(tmp_path / "model", *made.as_gptq())
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=match):
        as_stored(folder)


def test_a_head_that_is_stored_apart_is_not_tied(tmp_path):
    folder = made.write(tmp_path / "model", *made.as_gptq(), kind="llama-tied")
    tensors = load_file(folder / "model.safetensors")
    head = torch.randn(tiny.VOCABULARY, 64)
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    loaded = as_stored(folder)
    assert torch.equal(loaded.model.lm_head.weight, head)
    assert torch.equal(loaded.model.model.embed_tokens.weight, tensors["model.embed_tokens.weight"])
    assert not loaded.model.config.tie_word_embeddings


def test_the_methods_are_named_once():
    assert set(METHODS) >= {"gptq", "awq", "compressed-tensors", "bitsandbytes", "fp8", "mxfp4"}
    assert replace(Uniform(4, 32, True)) == Uniform(4, 32, True)

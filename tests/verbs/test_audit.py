"""An audit names each damage rightly: exactly the finding that it must, and sound checkpoints of every kind
have none."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import fakehub
import foreign_models
import gguf
import gguf_models
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import qcore
from qcore import recipes
from qcore.base.errors import InputError
from qcore.interop.grid import pack_words
from qcore.library import exports
from qcore.verbs import audit, export
from qcore.verbs.audit_values import LARGEST_ERROR, zero_point_offset

TURN = "<|im_start|>"
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return sound checkpoints by name. Not to be changed."""
    place = tmp_path_factory.mktemp("sound")
    made = {kind: tiny.checkpoint(kind, place / kind) for kind in tiny.CONFIGS}
    for kind in ("llama", "moe"):
        made[f"{kind}-sharded"] = _sharded(kind, place / f"{kind}-sharded")
    for kind in foreign_models.RECIPES:
        made[kind] = foreign_models.write(kind, made["llama"], place / kind)
    made["mlx"] = foreign_models.write_mlx(made["llama"], place / "mlx")
    made["fp8"] = foreign_models.write_fp8(made["llama"], place / "fp8")
    made["mxfp4"] = foreign_models.write_mxfp4(place / "mxfp4")
    for kind, recipe in (
        ("llama", "int4-g32"),
        ("llama-tied", "int4-head8"),
        ("moe", "nf4-g64"),
        ("gpt2", "bf16"),
    ):
        made[f"qcore-{recipe}"] = qcore.save(
            qcore.quantize(str(made[kind]), recipe), place / f"qcore-{recipe}"
        )
    torch.manual_seed(0)
    model = LlamaForCausalLM(gguf_models.CONFIG)
    kinds = gguf.GGMLQuantizationType
    for name, kind in (("f32", None), ("q8_0", kinds.Q8_0), ("q4_0", kinds.Q4_0), ("q5_1", kinds.Q5_1)):
        made[name] = place / f"{name}.gguf"
        gguf_models.write(made[name], model, kind)
    return made


def _sharded(kind: str, folder: Path) -> Path:
    tiny.model(kind).save_pretrained(folder, max_shard_size="120KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


SOUND = [
    *tiny.CONFIGS,
    "llama-sharded",
    "moe-sharded",
    *foreign_models.RECIPES,
    "mlx",
    "fp8",
    "mxfp4",
    "qcore-int4-g32",
    "qcore-int4-head8",
    "qcore-nf4-g64",
    "qcore-bf16",
    "f32",
    "q8_0",
    "q4_0",
    "q5_1",
]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_checkpoint_has_no_finding(sound, name):
    found = audit.run(sound[name])
    assert not found.findings, [(each.check, each.spots) for each in found.findings]
    assert found.sentence == "Sound: no check found anything wrong." and not found.not_looked_at
    assert found.read_bytes == found.stored_bytes == sum(line.nbytes for line in found.ledger)
    assert audit.Audit.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-dithered"])
def test_the_default_models_have_no_finding(name):
    found = audit.run(name)
    assert not found.findings and found.parameters == 134_515_008


@pytest.mark.slow
def test_pruned_and_exported_folders_have_no_finding(sound, tmp_path):
    qcore.prune(str(sound["llama"]), "magnitude", 0.6, tmp_path / "pruned", sparse=True)
    export.run(str(sound["llama-tied"]), recipes.parse("int8"), tmp_path / "onnx", progress=lambda *_: None)
    pruned, onnx = (audit.run(tmp_path / folder) for folder in ("pruned", "onnx"))
    assert not pruned.findings and any(line.form == "F32 without zeros" for line in pruned.ledger)
    assert not onnx.findings and onnx.parameters == tiny.model("llama-tied").num_parameters()
    assert onnx.stored_bytes < onnx.file_bytes and {line.form for line in onnx.ledger} == {
        "int8-sym",
        "float32",
    }
    flip(tmp_path / "onnx" / "model.onnx.data", -1)
    (finding,) = audit.run(tmp_path / "onnx").findings
    assert (finding.check, finding.spots[0].where) == ("qcore-manifest", "model.onnx.data")


EXPORTS = {
    "gguf": ("moe", "gguf-q4_1"),
    "compressed-tensors": ("moe", "int4-g32-sym"),
    "gptq": ("gpt2", "int4-g32"),
    "gptq-v1": ("llama-tied", "int4-g32-sym"),
    "awq": ("llama-tied", "int4-g32"),
    "bnb": ("llama-tied", "nf4-g64"),
    "mlx": ("moe", "int4-g64"),
}


def test_there_is_an_export_for_each_target():
    assert set(EXPORTS) == set(exports.TARGETS) - {"onnx"}


@pytest.mark.parametrize("to", EXPORTS)
def test_an_export_has_no_finding(sound, tmp_path, to):
    kind, recipe = EXPORTS[to]
    export.run(str(sound[kind]), recipes.parse(recipe), tmp_path / "out", to=to, progress=lambda *_: None)
    (file,) = [*(tmp_path / "out").glob("*.gguf")] or [tmp_path / "out"]
    found = audit.run(file)
    assert not found.findings, [(each.check, each.spots) for each in found.findings]
    assert found.parameters == tiny.model(kind).num_parameters() and any(x.quantized for x in found.ledger)


# -- damage --------------------------------------------------------------------------------------------------


def tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = "model.safetensors") -> Callable:
    """Return a damage that changes the tensors of a file."""

    def damage(folder: Path) -> None:
        held = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
        change(held)
        save_file(held, folder / file, {"format": "pt"})

    return damage


def settings(file: str, **changes) -> Callable:
    """Return a damage that changes fields of a JSON file; None removes a field."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        record |= changes
        (folder / file).write_text(
            json.dumps({key: value for key, value in record.items() if value is not None})
        )

    return damage


def quantization(**changes) -> Callable:
    """Return a damage that changes fields of quantization_config."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "config.json").read_text())
        record["quantization_config"] |= changes
        (folder / "config.json").write_text(json.dumps(record))

    return damage


def index(change: Callable[[dict], object]) -> Callable:
    """Return a damage that changes the index."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def cut(file: str, count: int) -> Callable:
    """Return a damage that removes the last bytes of a file."""
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-count])


def add(file: str, content: bytes) -> Callable:
    """Return a damage that appends bytes to a file, or makes it."""

    def damage(folder: Path) -> None:
        with (folder / file).open("ab") as opened:
            opened.write(content)

    return damage


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


def renamed(change: Callable[[str], str]) -> Callable:
    return tensors(lambda held: [held.update({change(name): held.pop(name)}) for name in list(held)])


def spoil(name: str, value: float, place: int = 0) -> Callable:
    return tensors(lambda held: held[name].view(-1).__setitem__(place, value))


def shift_zeros(by: int) -> Callable:
    """Return a damage that adds `by` to all zero points stored by GPTQ or AWQ, of 4 bits in any order."""

    def change(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if name.endswith("qzeros")]:
            stored = held[name].view(torch.uint8)
            nibbles = [((stored >> shift) & 15).to(torch.int16) + by for shift in (0, 4)]
            low, high = (part.clamp(0, 15).to(torch.uint8) for part in nibbles)
            held[name] = (low | (high << 4)).view(torch.int32)

    return tensors(change)


def in_float(folder: Path) -> None:
    """Replace the codes of one layer by its weight."""

    def change(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if name.startswith(DOWN)]:
            held.pop(name)
        held[f"{DOWN}.weight"] = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))

    tensors(change)(folder)


def wrap(held: dict[str, torch.Tensor]) -> None:
    name = next(name for name in held if name.endswith("q_proj.qzeros"))
    held[name][0, 0] |= 15


def template(where: str, text: str) -> Callable:
    if where.endswith(".jinja"):
        return add(where, text.encode())
    return settings(where, chat_template=text)


def with_turns(folder: Path) -> None:
    """Name a token of the vocabulary as one that begins a turn."""
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<bos>"', json.dumps(TURN)))
    settings("tokenizer_config.json", bos_token=TURN)(folder)


def add_token(folder: Path) -> None:
    """Add a token whose id is beyond the rows of the embedding."""
    record = json.loads((folder / "tokenizer.json").read_text())
    record["added_tokens"].append({"id": tiny.VOCABULARY, "content": "<extra>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(record))


def both(*damages: Callable) -> Callable:
    return lambda folder: [damage(folder) for damage in damages]


Q = "model.layers.0.self_attn.q_proj"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
INDEX = "model.safetensors.index.json"
STALE = "model-00009-of-00009.safetensors"
# (what is damaged, damage, the only check that finds it, where)
DAMAGED = {
    "a file cut short": ("llama", cut("model.safetensors", 100), "file-truncated", "model.safetensors"),
    "a shard cut short": (
        "llama-sharded",
        lambda f: cut(first_shard(f).name, 9)(f),
        "file-truncated",
        "model-",
    ),
    "bytes behind the tensors": (
        "llama",
        add("model.safetensors", b"x"),
        "file-trailing",
        "model.safetensors",
    ),
    "a header of garbage": (
        "llama",
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 4000),
        "file-damaged",
        "model.safetensors",
    ),
    "a shard of garbage": (
        "llama-sharded",
        lambda f: first_shard(f).write_bytes(b"\xff" * 40),
        "file-damaged",
        "model-00001",
    ),
    "a config of garbage": ("llama", add("config.json", b"}"), "file-damaged", "config.json"),
    "no config": ("llama", lambda f: (f / "config.json").unlink(), "config-missing", "config.json"),
    "a shard that is not there": (
        "llama-sharded",
        lambda f: first_shard(f).unlink(),
        "shard-missing",
        "model-00001",
    ),
    "shards without an index": (
        "llama-sharded",
        lambda f: (f / INDEX).unlink(),
        "index-missing",
        "model-00001",
    ),
    "a shard of another model": (
        "llama-sharded",
        lambda f: shutil.copyfile(first_shard(f), f / STALE),
        "shard-stale",
        STALE,
    ),
    "an index of another model": (
        "llama-sharded",
        index(lambda record: record["weight_map"].update({"other.weight": record["weight_map"][HEAD]})),
        "index-wrong",
        "other.weight",
    ),
    "a tensor in two shards": (
        "llama-sharded",
        lambda f: tensors(lambda held: held.update({HEAD: torch.ones(258, 64)}), first_shard(f).name)(f),
        "tensor-twice",
        HEAD,
    ),
    "an index with another size": (
        "llama-sharded",
        index(lambda record: record["metadata"].update(total_size=1)),
        "index-size",
        "total_size",
    ),
    "an index that counts words": (
        "llama-sharded",
        index(lambda record: record["metadata"].update(total_parameters=13_384)),
        "index-size",
        "total_parameters",
    ),
    "a pickle beside": ("llama", add("pytorch_model.bin", b"\x80"), "pickled-beside", "pytorch_model.bin"),
    "only a pickle": (
        "llama",
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "weights-pickled",
        "pytorch_model.bin",
    ),
    "a weight is NaN": ("llama", spoil(f"{Q}.weight", float("nan")), "not-finite", f"{Q}.weight"),
    "a scale is infinite": ("awq", spoil(f"{Q}.scales", float("inf"), 7), "not-finite", f"{Q}.scales"),
    "a scale of fp8 is NaN": ("fp8", spoil(f"{Q}.weight_scale_inv", float("nan")), "not-finite", Q),
    "a scale of MXFP4 is NaN": (
        "mxfp4",
        spoil("model.layers.0.mlp.experts.down_proj_scales", 255, 5),
        "not-finite",
        "model.layers.0.mlp.experts.down_proj_scales",
    ),
    "a scale is absurd": ("gptq", spoil(f"{Q}.scales", 6e4), "scale-absurd", f"{Q}.scales"),
    "a scale is negative": ("ct", spoil(f"{Q}.weight_scale", -0.01), "scale-absurd", f"{Q}.weight_scale"),
    "all scales are zero": (
        "bnb-nf4",
        tensors(lambda held: held[f"{Q}.weight.absmax"].zero_()),
        "scale-absurd",
        f"{Q}.weight.absmax",
    ),
    "a weight is absurd": (
        "gpt2",
        spoil("transformer.wpe.weight", 1e6),
        "scale-absurd",
        "transformer.wpe.weight",
    ),
    "a matrix of zeros": (
        "llama",
        tensors(lambda held: held[f"{Q}.weight"].zero_()),
        "matrix-zero",
        f"{Q}.weight",
    ),
    "an expert is left out": ("moe", tensors(lambda held: held.pop(EXPERT)), "expert-missing", EXPERT),
    "the last expert is left out": (
        "moe",
        tensors(lambda held: [held.pop(name) for name in list(held) if ".experts.3." in name]),
        "expert-missing",
        "experts.3",
    ),
    "the head is left out": ("llama", tensors(lambda held: held.pop(HEAD)), "head-missing", HEAD),
    "a tied head is stored again": (
        "llama-tied",
        tensors(lambda held: held.update({HEAD: held[EMBEDDING].clone()})),
        "head-twice",
        HEAD,
    ),
    "a tied head that differs": (
        "llama-tied",
        tensors(lambda held: held.update({HEAD: held[EMBEDDING] + 1})),
        "head-differs",
        HEAD,
    ),
    "the tie flag of an untied model": (
        "llama",
        settings("config.json", tie_word_embeddings=True),
        "head-differs",
        HEAD,
    ),
    "a lost prefix": (
        "llama",
        renamed(lambda name: name.removeprefix("model.")),
        "names-prefix",
        "embed_tokens",
    ),
    "a lost prefix of a tied model": (
        "llama-tied",
        renamed(lambda name: name.removeprefix("model.")),
        "names-bare",
        "embed_tokens",
    ),
    "an added prefix": (
        "gptq",
        renamed(lambda name: name.replace("model.", "model.language_model.")),
        "names-prefix",
        "model.language_model.",
    ),
    "a layer is left out": (
        "llama",
        tensors(lambda held: held.pop(f"{Q}.weight")),
        "tensor-missing",
        f"{Q}.weight",
    ),
    "a layer of another shape": (
        "llama",
        tensors(lambda held: held.update({f"{Q}.weight": torch.ones(64, 60)})),
        "shape-wrong",
        f"{Q}.weight",
    ),
    "a head for more tokens": (
        "llama",
        tensors(lambda held: held.update({"mtp.0.weight": torch.ones(4, 4)})),
        "tensor-unclaimed",
        "mtp.0.weight",
    ),
    "zero points of version 2 as version 1": (
        "gptq",
        quantization(checkpoint_format="gptq"),
        "zero-point-convention",
        f"{Q}.qzeros",
    ),
    "zero points of version 1 as version 2": (
        "gptq",
        shift_zeros(-1),
        "zero-point-convention",
        f"{Q}.qzeros",
    ),
    "a symmetric grid as version 2": (
        "gptq-v1",
        quantization(checkpoint_format="gptq_v2"),
        "zero-point-convention",
        f"{Q}.qzeros",
    ),
    "zero points minus one in AWQ": ("awq", shift_zeros(-1), "zero-point-convention", f"{Q}.qzeros"),
    "a zero point that wraps": (
        "gptq",
        both(shift_zeros(-1), quantization(checkpoint_format="gptq"), tensors(wrap)),
        "zero-point-wraps",
        f"{Q}.qzeros",
    ),
    "zero points are missing": ("awq", tensors(lambda held: held.pop(f"{Q}.qzeros")), "parts-contradict", Q),
    "another number of bits": ("gptq", quantization(bits=8), "parts-contradict", Q),
    "an ignored name with a lost prefix": (
        "ct",
        both(in_float, quantization(ignore=["lm_head", f"language_model.{DOWN}"])),
        "ignore-prefix",
        f"language_model.{DOWN}",
    ),
    "an ignored name that is none": (
        "ct",
        quantization(ignore=["lm_head", "re:.*vision.*"]),
        "ignore-nothing",
        "re:",
    ),
    "an ignored module in codes": (
        "ct",
        quantization(ignore=["lm_head", "re:.*layers.1.mlp.down_proj"]),
        "ignore-contradicted",
        "model.layers.1.mlp.down_proj",
    ),
    "a layer in float that is not ignored": ("gptq", in_float, "ignore-incomplete", DOWN),
    "a layer in float that bitsandbytes rounds": ("bnb-nf4", in_float, "ignore-requantized", DOWN),
    "a head that is not ignored": ("ct", quantization(ignore=[]), "ignore-incomplete", "lm_head"),
    "an ignored part of names": (
        "awq",
        quantization(modules_to_not_convert=["lm_head", "embed_tokens", "down_pro"]),
        "ignore-substring",
        "down_pro",
    ),
    "an end that generation does not know": (
        "llama",
        settings("generation_config.json", eos_token_id=256),
        "eos-disagreement",
        "generation_config.json",
    ),
    "another first token": (
        "llama",
        settings("config.json", bos_token_id=3),
        "bos-disagreement",
        "bos_token_id",
    ),
    "another padding": (
        "llama",
        both(settings("config.json", pad_token_id=3), settings("generation_config.json", pad_token_id=4)),
        "pad-disagreement",
        "pad_token_id",
    ),
    "a padding beyond the vocabulary": (
        "llama",
        settings("generation_config.json", pad_token_id=99_999),
        "token-range",
        "generation_config.json",
    ),
    "a smaller vocabulary": ("llama", settings("config.json", vocab_size=200), "vocabulary-size", EMBEDDING),
    "a token beyond the embedding": ("llama", add_token, "tokens-added", "<extra>"),
    "no tokenizer": (
        "llama",
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer-missing",
        "tokenizer.json",
    ),
    "turns without a template": ("llama", with_turns, "template-missing", "chat template"),
    "two templates": (
        "llama",
        both(template("chat_template.jinja", "{{ 1 }}"), template("tokenizer_config.json", "{{ 2 }}")),
        "template-differs",
        "chat_template.jinja",
    ),
    "a template in one place": (
        "gptq",
        template("chat_template.jinja", "{{ 1 }}"),
        "template-one-place",
        "chat_template.jinja",
    ),
    "two dtypes": (
        "llama",
        tensors(lambda held: held.update({f"{Q}.weight": held[f"{Q}.weight"].half()})),
        "dtype-mix",
        "model.layers.N.self_attn.q_proj.weight",
    ),
    "a byte of a qcore model": (
        "qcore-int4-g32",
        lambda f: flip(f / "model.safetensors", -5),
        "qcore-manifest",
        "model.safetensors",
    ),
    "a qcore model without a tensor": (
        "qcore-int4-g32",
        tensors(lambda held: held.pop(f"{Q}.codes")),
        "qcore-manifest",
        "qcore.json",
    ),
    "a manifest of garbage": ("qcore-int4-g32", add("qcore.json", b"]"), "qcore-manifest", "qcore.json"),
}


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_rightly(sound, tmp_path, name):
    kind, damage, check, where = DAMAGED[name]
    folder = shutil.copytree(sound[kind], tmp_path / "model")
    damage(folder)
    found = audit.run(folder)
    assert [each.check for each in found.findings] == [check], [(f.check, f.spots) for f in found.findings]
    (finding,) = found.findings
    assert where in " ".join(spot.where for spot in finding.spots) and all(
        spot.what for spot in finding.spots
    )
    assert found.broken == (finding.severity == "broken") and finding.effect and finding.remedy


# -- GGUF ----------------------------------------------------------------------------------------------------


class Rewritten:
    """A GGUF file that is written again with changes. `fields` maps keys to new values (None removes one),
    `drop` and `add` name tensors."""

    def __init__(self, *, fields=None, drop=(), add=None):
        self.fields, self.drop, self.add = fields or {}, drop, add or {}

    def __call__(self, path: Path) -> None:
        reader = gguf.GGUFReader(str(path))
        writer = gguf.GGUFWriter(str(path.with_suffix(".new")), "llama")
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name in ("general.architecture", *self.fields):
                continue
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        for key, value in self.fields.items():
            if value is not None:
                kind = gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.UINT32
                writer.add_key_value(key, value, kind)
        for tensor in reader.tensors:
            if tensor.name not in self.drop:
                writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        for name, shape in self.add.items():
            writer.add_tensor(name, np.ones(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        path.with_suffix(".new").replace(path)


def infinite_scale(path: Path) -> None:
    """Make the scale of a block of blk.0.attn_q.weight infinite."""
    tensor = next(each for each in gguf.GGUFReader(str(path)).tensors if each.name == "blk.0.attn_q.weight")
    with path.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(struct.pack("<e", float("inf")))


def foreign_type(path: Path) -> None:
    """Give blk.0.attn_q.weight a type that no release of ggml has."""
    content, name = path.read_bytes(), b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions and two sizes
    path.write_bytes(content[:place] + struct.pack("<I", 999) + content[place + 4 :])


def split(path: Path) -> None:
    path.rename(path.with_name("model-00001-of-00003.gguf"))


DAMAGED_GGUF = {
    "a file cut short": ("q8_0", lambda p: cut(p.name, 99)(p.parent), "file-truncated", "model.gguf"),
    "a header cut short": (
        "q8_0",
        lambda p: p.write_bytes(p.read_bytes()[:900]),
        "file-damaged",
        "model.gguf",
    ),
    "another format": (
        "q8_0",
        lambda p: p.write_bytes(b"GGML" + p.read_bytes()[4:]),
        "file-damaged",
        "model.gguf",
    ),
    "a part is missing": ("q8_0", split, "shard-missing", "model-00002-of-00003.gguf"),
    "an infinite scale": ("q4_0", infinite_scale, "not-finite", "blk.0.attn_q.weight"),
    "a tensor of a block": (
        "q4_0",
        Rewritten(drop=["blk.1.ffn_up.weight"]),
        "gguf-tensors",
        "blk.1.ffn_up.weight",
    ),
    "a whole block": ("q4_0", Rewritten(fields={"llama.block_count": 3}), "gguf-tensors", "blk.2"),
    "the last norm": ("q4_0", Rewritten(drop=["output_norm.weight"]), "gguf-tensors", "output_norm.weight"),
    "an unknown tensor": ("q4_0", Rewritten(add={"mtp.0.weight": (4, 4)}), "gguf-tensors", "mtp.0.weight"),
    "the rope factors of Llama 3.1": (
        "f32",
        Rewritten(fields={"llama.rope.freq_base": 500_000.0, "llama.context_length": 131_072}),
        "gguf-tensors",
        "rope_freqs.weight",
    ),
    "another number of experts": (
        "f32",
        Rewritten(
            fields={"llama.expert_count": 8}, add={f"blk.{n}.ffn_gate_inp.weight": (4, 64) for n in (0, 1)}
        ),
        "gguf-experts",
        "blk.0.ffn_gate_inp.weight",
    ),
    "a type of a fork": ("q4_0", foreign_type, "gguf-type-unknown", "blk.0.attn_q.weight"),
    "an end beyond the vocabulary": (
        "f32",
        Rewritten(fields={"tokenizer.ggml.eos_token_id": 64}),
        "gguf-token-range",
        "tokenizer.ggml.eos_token_id",
    ),
    "no end": (
        "f32",
        Rewritten(fields={"tokenizer.ggml.eos_token_id": None}),
        "gguf-eos-missing",
        "tokenizer.ggml",
    ),
    "no pre-tokenizer": (
        "f32",
        Rewritten(fields={"tokenizer.ggml.pre": None}),
        "gguf-pretokenizer",
        "tokenizer.ggml",
    ),
    "no tokenizer": (
        "f32",
        Rewritten(fields={"tokenizer.ggml.tokens": None}),
        "gguf-tokenizer-missing",
        "tokenizer.ggml.tokens",
    ),
    "another vocabulary": (
        "f32",
        Rewritten(drop=["token_embd.weight"], add={"token_embd.weight": (70, 64)}),
        "gguf-vocabulary",
        "token_embd.weight",
    ),
}


@pytest.mark.parametrize("name", DAMAGED_GGUF)
def test_damage_of_a_gguf_file_is_named_rightly(sound, tmp_path, name):
    kind, damage, check, where = DAMAGED_GGUF[name]
    shutil.copyfile(sound[kind], tmp_path / "model.gguf")
    damage(tmp_path / "model.gguf")
    (path,) = tmp_path.glob("*.gguf")
    found = audit.run(path)
    assert [each.check for each in found.findings] == [check], [(f.check, f.spots) for f in found.findings]
    assert where in " ".join(spot.where for spot in found.findings[0].spots)


def test_every_check_is_documented_with_its_severity():
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    listed = dict(re.findall(r"^\| ([\w-]+) \| (broken|loses quality|worth knowing) \|", text, re.MULTILINE))
    assert listed == {name: audit.CHECKS[name].severity for name in audit.CHECKS}


def test_the_answer_in_one_sentence(sound, tmp_path):
    folder = shutil.copytree(sound["llama"], tmp_path / "model")
    both(*(DAMAGED[name][1] for name in ("a pickle beside", "another padding")))(folder)
    assert audit.run(folder).sentence == "Usable: 2 findings are worth knowing."
    settings("config.json", bos_token_id=3)(folder)
    assert audit.run(folder).sentence == "Usable: 1 finding loses quality, 2 are worth knowing."
    cut("model.safetensors", 9)(folder)
    assert audit.run(folder).sentence.startswith("Broken: 1 finding breaks the model, 1 loses")


def test_every_check_finds_something_here():
    found = {check for _, _, check, _ in (*DAMAGED.values(), *DAMAGED_GGUF.values())}
    assert set(audit.CHECKS) == found


# -- zero points ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, size", [(2, 32), (3, 128), (4, 32), (4, 128)])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_convention_is_decided_from_the_values(bits, size, offset):
    generator = torch.Generator().manual_seed(bits * size)
    weight = torch.randn(64, 8, size, generator=generator)
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round().clamp(1, 2**bits - 1)
    codes = ((weight / scale).round() + zero).clamp(0, 2**bits - 1)
    found = zero_point_offset(codes, zero.squeeze(-1) - offset)
    assert found.offset == offset and found.error <= LARGEST_ERROR and found.groups > 256


def test_values_that_tell_nothing_decide_nothing():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 4, 32), generator=generator)
    assert zero_point_offset(codes[:2, :1], torch.full((2, 1), 7)).offset is None  # too few groups
    assert zero_point_offset(codes, torch.full((32, 4), 0)).offset is None  # explained by neither


def test_a_wrong_decision_is_as_rare_as_stated():
    """Of 400 tensors whose groups favour neither convention, none is decided."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        means = 8 + 0.5 + torch.randn(128, 1, 1, generator=generator)
        assert zero_point_offset(means, torch.full((128, 1), 8)).offset is None


def test_packed_zero_points_of_the_test_are_those_of_gptq():
    """`shift_zeros` changes what `pack_words` writes, nibble by nibble."""
    codes = torch.tensor([[3, 1, 15, 8, 9, 2, 4, 7]], dtype=torch.uint8)
    stored = pack_words(codes, 4).view(torch.uint8)
    assert torch.stack((stored & 15, stored >> 4), -1).flatten().tolist() == codes.flatten().tolist()


# -- the ledger ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gptq", "awq", "ct", "bnb-nf4", "mlx"])
def test_the_ledger_counts_logical_weights(sound, kind):
    found = audit.run(sound[kind])
    plain = audit.run(sound["llama"])
    assert found.parameters == plain.parameters == tiny.model("llama").num_parameters()
    assert {line.name: line.weights for line in found.ledger} == {
        line.name: line.weights for line in plain.ledger
    }
    lines = {line.name: line for line in found.ledger}
    assert lines[f"{Q}.weight"].quantized and 4 < lines[f"{Q}.weight"].bits_per_weight < 7
    assert not lines[HEAD].quantized and lines[HEAD].form == "F32"
    held = load_file(sound[kind] / "model.safetensors")
    assert found.stored_bytes == sum(tensor.nbytes for tensor in held.values())
    assert found.kept == pytest.approx(0.3114, abs=1e-3)


def test_values_can_be_left_out(sound, tmp_path):
    folder = shutil.copytree(sound["llama"], tmp_path / "model")
    spoil(f"{Q}.weight", float("nan"))(folder)
    found = audit.run(folder, values=False)
    assert not found.findings and found.read_bytes == 0
    assert found.sentence == "Sound: no check found anything wrong in the headers."
    assert found.not_looked_at == ("The values of weights and scales were not looked at.",)


def test_progress_and_cancelling(sound):
    seen = []

    def report(done, total, words):
        seen.append((done, total))
        if total and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit.run(sound["llama"], progress=report)
    assert seen[-1][0] < seen[-1][1] and len(seen) > 4


@pytest.mark.parametrize(
    "name, words", [("nothing/at/all", "neither a folder"), ("empty", "no weights to audit")]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        audit.run(name)
    with pytest.raises(InputError, match="not accepted here"):
        audit.run("../secret/folder", public=True)


def test_expressions_that_never_end_are_tried_and_those_without_bound_are_named(sound, tmp_path):
    folder = shutil.copytree(sound["ct"], tmp_path / "model")
    quantization(ignore=["lm_head", "re:(a+)+$", "re:" + "x" * 1024, "re:(?i)vision"])(folder)
    (finding,) = audit.run(folder).findings
    assert finding.check == "ignore-nothing"
    never, long, flags = (spot.what for spot in finding.spots)
    assert never == "No module has such a name."
    assert "limited to 1024 characters" in long and "uses inline flags" in flags
    # whether it exempts a layer in floating point is not known
    quantization(ignore=["lm_head", "re:(?i).*DOWN_PROJ"])(folder)
    in_float(folder)
    assert [finding.check for finding in audit.run(folder).findings] == ["ignore-nothing"]


# -- the hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with fakehub.serve() as server:
        fakehub.point_library_at(monkeypatch, server.url, tmp_path / "cache")
        yield server


def test_a_hub_model_is_audited_by_its_headers(hub, sound, tmp_path):
    folder = shutil.copytree(sound["gptq"], tmp_path / "model")
    both(quantization(checkpoint_format="gptq"), settings("generation_config.json", eos_token_id=256))(folder)
    hub.repositories["owner/tiny"] = folder
    found = audit.run("owner/tiny", public=True)
    assert [each.check for each in found.findings] == ["eos-disagreement"]  # zero points need values
    assert found.revision == fakehub.COMMIT and found.read_bytes == 0 and found.parameters == 107_072
    assert "not looked at" in found.not_looked_at[0] and not hub.asked_for("model.safetensors.index.json")
    size = (folder / "model.safetensors").stat().st_size
    assert hub.sent < size


def test_shards_and_gguf_files_on_the_hub(hub, sound, tmp_path):
    folder = shutil.copytree(sound["llama-sharded"], tmp_path / "model")
    first_shard(folder).unlink()
    hub.repositories["owner/sharded"] = folder
    assert [each.check for each in audit.run("owner/sharded").findings] == ["shard-missing"]
    (tmp_path / "files").mkdir()
    for name in ("q8_0", "q4_0"):
        shutil.copyfile(sound[name], tmp_path / "files" / f"{name}.gguf")
    hub.repositories["owner/gguf"] = tmp_path / "files"
    found = audit.run("owner/gguf")
    assert (
        not found.findings
        and found.method == "Q4_0"
        and "only the header of q4_0.gguf" in found.not_looked_at[1]
    )

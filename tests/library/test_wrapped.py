"""Text models inside wrappers: found, quantized, saved, and loaded again as the wrapper."""

import shutil
import subprocess
import sys

import pytest
import tiny
import torch
import transformers
import wrapped_models
from safetensors.torch import load_file, save_file
from wrapped_models import text_logits

from qcore import library, planning
from qcore.base.errors import InputError
from qcore.evaluation import evaluate
from qcore.formats.kv import KV_FORMATS
from qcore.layers.select import select
from qcore.layers.text_part import causal_model, computing_type, output_head, text_part
from qcore.library import safetensors
from qcore.models import meta_model
from qcore.models.classes import model_class
from qcore.models.config import to_transformers
from qcore.planning import fit, sample
from qcore.planning.speed import weights_a_token
from qcore.quantization.calibration import load_calibration
from qcore.quantization.convert import quantize
from qcore.recipes import parse
from qcore.streaming import quantizing as streaming
from qcore.streaming.evaluating import evaluate_streamed
from qcore.verbs import quantize as quantize_verb

IDS = torch.arange(40, 72)[None]
RECIPES = ("int8", "int4-g32-gptq", "nf4")
# type -> the towers, and where the decoder's layers are
PARTS = {
    "gemma3": ({"model.vision_tower", "model.multi_modal_projector"}, "model.language_model"),
    "mistral3": ({"model.vision_tower", "model.multi_modal_projector"}, "model.language_model"),
    "llava": ({"model.vision_tower", "model.multi_modal_projector"}, "model.language_model"),
    "qwen2_audio": ({"model.audio_tower", "model.multi_modal_projector"}, "model.language_model"),
    "qwen2_5_vl": ({"model.visual"}, "model.language_model"),
    "qwen3_vl": ({"model.visual"}, "model.language_model"),
    "qwen3_5": ({"model.visual"}, "model.language_model"),
    "qwen3_5_moe": ({"model.visual"}, "model.language_model"),
    "llama4": ({"vision_model", "multi_modal_projector"}, "language_model.model"),
    "gemma4": ({"model.vision_tower", "model.embed_vision"}, "model.language_model"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{model type: folder}, made when first asked for."""

    class Folders(dict):
        def __missing__(self, kind):
            made = wrapped_models.checkpoint(kind, tmp_path_factory.mktemp("wrapped") / kind)
            return self.setdefault(kind, made)

    return Folders()


@pytest.mark.parametrize("kind", PARTS)
def test_the_text_model_is_found_and_reads_text_as_the_wrapper_does(kind, folders):
    loaded = library.load(folders[kind])
    own = wrapped_models.model(kind)
    assert type(loaded.model) is type(own)
    part = text_part(loaded.model)
    assert (set(part.towers), part.name) == PARTS[kind]
    assert part.config is loaded.model.config.get_text_config()
    assert part.head.out_features == wrapped_models.VOCABULARY
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=IDS).logits, text_logits(own, IDS))
    # every parameter of a tower is kept, and nothing else is because of a tower
    kept = select(loaded.model, parse("int4-g32-head8")).kept
    names = {name for name, _ in loaded.model.named_parameters()}
    in_towers = {name for name in names if part.tower_of(name)}
    assert in_towers == {name for name, reason in kept.items() if "is not part of the text model" in reason}
    assert in_towers and all(name.split(".layers.")[0] != part.name for name in in_towers)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
def test_a_model_without_a_wrapper_is_all_text(kind):
    model = tiny.model(kind)
    part = text_part(model)
    assert part.towers == () and causal_model(model) is None
    assert part.stack is model.base_model and part.head is output_head(model) is model.lm_head


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen3_5", "llama4"])
def test_saved_the_wrapper_loads_with_the_same_logits(kind, folders, tmp_path):
    checkpoint = library.resolve(folders[kind])
    own = load_file(checkpoint.folder / "model.safetensors")
    for name in RECIPES:
        recipe, loaded = parse(name), library.load(checkpoint)
        text = load_calibration(None, loaded.tokenizer, tokens=512) if recipe.calibrated else None
        ledger = quantize(loaded.model, recipe, calibration=text)
        part = text_part(loaded.model)
        quantized = [row for row in ledger.rows if row.format]
        assert quantized and all(row.name.startswith(f"{part.name}.layers.") for row in quantized)
        towers = [row for row in ledger.rows if part.tower_of(row.name)]
        assert sum(row.weights for row in towers) == sum(
            tensor.numel() for stored, tensor in own.items() if not _is_text(stored)
        )
        folder = safetensors.save(loaded.model, loaded.tokenizer, recipe, ledger, tmp_path / name)
        with torch.no_grad():
            logits = library.load(folder).model(input_ids=IDS).logits
            assert torch.equal(logits, loaded.model(input_ids=IDS).logits)
        again = getattr(transformers, wrapped_models.KINDS[kind][0]).from_pretrained(folder)
        assert torch.equal(text_logits(again, IDS), logits)
        saved = load_file(folder / "model.safetensors")
        for tower in (row.name for row in towers):
            assert torch.equal(saved[tower], loaded.model.get_parameter(tower)), tower
        assert fit.estimate(checkpoint, recipe).stored_bytes == ledger.stored_bytes
        if name == "nf4":
            save_file({"logits": logits}, tmp_path / "logits.safetensors")
            streaming.quantize(checkpoint, recipe, tmp_path / "streamed")
            streamed = load_file(tmp_path / "streamed" / "model.safetensors")
            assert streamed.keys() == saved.keys()
            assert all(torch.equal(streamed[each], saved[each]) for each in saved)
    if kind == "qwen3_5":
        _load_elsewhere(tmp_path)


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl"])
def test_towers_are_saved_in_the_type_of_their_source(kind, tmp_path):
    """They were saved in float32: twice the bytes of the source, for the same values."""
    folder = tmp_path / "source"
    wrapped_models.model(kind).to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    checkpoint, recipe = library.resolve(folder), parse("int8")
    loaded = library.load(checkpoint)
    ledger = quantize(loaded.model, recipe)
    saved = safetensors.save(loaded.model, loaded.tokenizer, recipe, ledger, tmp_path / "saved")
    streaming.quantize(checkpoint, recipe, tmp_path / "streamed")
    files = [load_file(each / "model.safetensors") for each in (saved, tmp_path / "streamed")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    part, source = text_part(loaded.model), wrapped_models.model(kind).to(torch.bfloat16)
    towers = {name for name, _ in source.named_parameters() if part.tower_of(name)}
    assert towers and all(torch.equal(files[0][name], source.get_parameter(name)) for name in towers)
    others = {tensor.dtype for name, tensor in files[0].items() if name not in towers}
    assert torch.float32 in others and torch.bfloat16 not in others
    assert fit.estimate(checkpoint, recipe).stored_bytes == ledger.stored_bytes
    again = library.load(saved)
    assert computing_type(again.model) == torch.float32
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=IDS).logits, loaded.model(input_ids=IDS).logits)
    theirs = getattr(transformers, wrapped_models.KINDS[kind][0]).from_pretrained(saved)
    assert {each.dtype for each in theirs.parameters()} == {torch.float32}


@torch.no_grad()
def test_towers_are_quantized_on_request(folders, tmp_path):
    checkpoint, recipe = library.resolve(folders["gemma3"]), parse("int4-g32-towers8")
    loaded = library.load(checkpoint)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    seen = loaded.model.model.vision_tower(pixels).last_hidden_state
    ledger = quantize(loaded.model, recipe)
    part = text_part(loaded.model)
    towers = {row.name: row for row in ledger.rows if part.tower_of(row.name)}
    assert {row.format for row in towers.values()} == {None, parse("int8").weights.label}
    quantized = {name for name, row in towers.items() if row.format}
    assert "model.vision_tower.encoder.layers.0.mlp.fc1.weight" in quantized
    assert fit.estimate(checkpoint, recipe).stored_bytes == ledger.stored_bytes
    saved = safetensors.save(loaded.model, loaded.tokenizer, recipe, ledger, tmp_path / "saved")
    streaming.quantize(checkpoint, recipe, tmp_path / "streamed")
    files = [load_file(each / "model.safetensors") for each in (saved, tmp_path / "streamed")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    theirs = transformers.Gemma3ForConditionalGeneration.from_pretrained(saved)
    made = theirs.model.vision_tower(pixels).last_hidden_state
    assert torch.equal(made, loaded.model.model.vision_tower(pixels).last_hidden_state)
    assert torch.nn.functional.cosine_similarity(made, seen, dim=-1).mean() > 0.99
    left = select(library.load(checkpoint).model, recipe.with_modules(skip=("fc1",)))
    assert quantized & left.kept.keys() == {name for name in quantized if "fc1" in name}


def test_a_model_without_towers_cannot_have_them_quantized():
    with pytest.raises(InputError, match="no towers with linear layers to quantize here. Leave out -towers8"):
        select(tiny.model("llama"), parse("int8-towers8"))


def _load_elsewhere(folder) -> None:
    """Compare the logits of the streamed model in a fresh process with those in `logits.safetensors`."""
    code = f"""
import torch
from safetensors.torch import load_file
import qcore
model = qcore.load({str(folder / "streamed")!r}).model
with torch.no_grad():
    logits = model(input_ids=torch.arange(40, 72)[None]).logits
assert torch.equal(logits, load_file({str(folder / "logits.safetensors")!r})["logits"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_perplexity_through_the_cache_and_streamed_is_that_of_the_modules(folders):
    checkpoint = library.resolve(folders["mistral3"])
    ids, recipe = torch.arange(200).remainder(97) + 30, parse("int8")
    streamed = evaluate_streamed(checkpoint, [recipe], ids, window=64)
    loaded = library.load(checkpoint)
    whole = evaluate(loaded.model, ids, window=64)
    assert streamed["fp32"].perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    quantize(loaded.model, recipe)
    whole = evaluate(loaded.model, ids, window=64)
    assert streamed["int8"].perplexity == pytest.approx(whole.perplexity, rel=1e-4)
    cached = evaluate(loaded.model, ids, window=64, kv=KV_FORMATS["int8"])
    assert cached.perplexity == pytest.approx(whole.perplexity, rel=0.01)


def _is_text(stored: str) -> bool:
    return "language_model" in stored or stored.startswith("lm_head")


def test_the_plan_counts_the_towers_and_what_is_not_loaded(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["gemma3"], folder)
    tensors = load_file(folder / "model.safetensors")
    extra = {"mtp.fc.weight": torch.ones(8, 16), "mtp.norm.weight": torch.ones(16)}
    save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    made = planning.plan(folder, ["int8"])
    towers = sum(tensor.numel() for name, tensor in tensors.items() if not _is_text(name))
    kept = f"model.vision_tower and model.multi_modal_projector ({towers:,} weights) are kept, unless"
    assert made.description == (
        f"A local folder. Only its text model is quantized: {kept} a recipe has -towers8. Not loaded, "
        "because Gemma3ForConditionalGeneration has no place for it: mtp.fc.weight and 1 more (144 weights)."
    )
    # a tensor inside a module that the model has would change what the model computes
    save_file(tensors | {"language_model.model.more.weight": torch.ones(8)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="more.weight is not part of the model"):
        library.resolve(folder)


def test_a_step_reads_no_tower(folders):
    meta = meta_model(library.resolve(folders["gemma3"]))
    part = text_part(meta)
    text = sum(each.numel() for name, each in meta.named_parameters() if not part.tower_of(name))
    assert weights_a_token(meta, parse("fp32")) == 4 * text  # the tied head is read, the embedding is its row


def test_a_shortened_copy_keeps_the_wrapper_and_gives_its_towers_no_memory(folders):
    config = library.load(folders["qwen2_5_vl"]).model.config
    copy = sample.build(sample.shortened(config, 1), parse("int4-g32"))
    assert type(copy) is transformers.Qwen2_5_VLForConditionalGeneration
    assert len(text_part(copy).stack.layers) == 1 and config.get_text_config().num_hidden_layers == 2
    assert copy.model.visual.patch_embed.proj.weight.untyped_storage().nbytes() == 4
    with torch.no_grad():
        assert copy(input_ids=IDS).logits.isfinite().all()


def test_the_settings_of_the_processor_come_along(folders, tmp_path):
    quantize_verb.run(
        str(folders["llava"]), parse("int8"), tmp_path / "out", stream=True, progress=lambda *step: None
    )
    for name in ("preprocessor_config.json", "tokenizer.json", "config.json", "README.md"):
        assert (tmp_path / "out" / name).is_file(), name
    assert "AutoModelForImageTextToText.from_pretrained(" in (tmp_path / "out" / "README.md").read_text()


def test_the_class_that_the_config_names_is_the_one_that_is_loaded():
    config = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"]}
    assert model_class(to_transformers(config)) is transformers.Qwen3_5ForConditionalGeneration
    # without a name: not Qwen3_5ForCausalLM, which is registered for this config too but reads the inner one
    assert (
        model_class(to_transformers({"model_type": "qwen3_5"}))
        is transformers.Qwen3_5ForConditionalGeneration
    )
    alone = to_transformers({"model_type": "qwen3_5", "architectures": ["Qwen3_5ForCausalLM"]})
    assert type(alone) is transformers.Qwen3_5TextConfig
    assert model_class(alone) is transformers.Qwen3_5ForCausalLM


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("florence2", "A florence2 model does not predict the next token"),
        ("blip-2", "A blip-2 model does not read text alone: it requires pixel_values"),
        ("clip", "A clip model does not predict the next token"),
    ],
)
def test_a_model_that_does_not_continue_a_text_is_refused(kind, why):
    with pytest.raises(InputError, match=why):
        to_transformers({"model_type": kind})

"""Loading weights: bit-equal to the library's own loading, mapped where possible, never NaN, never in
silence."""

import json

import psutil
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qcore import library, models
from qcore.base.errors import InputError
from qcore.library import safetensors
from qcore.library.finite import require_finite
from qcore.measurement.memory import PeakMemory
from qcore.models.checkpoint import SINGLE
from qcore.models.headers import read_header
from qcore.models.mapping import read_tensors
from qcore.quantization.convert import quantize
from qcore.recipes import parse

IDS = torch.arange(24)[None]


def retensor(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_logits_are_those_of_the_librarys_own_loading(originals, kind):
    loaded = library.load(originals[kind])
    reference = AutoModelForCausalLM.from_pretrained(originals[kind]).eval()
    assert torch.equal(loaded.model(IDS).logits, reference(IDS).logits)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {name for name, _ in loaded.model.named_buffers()} == {
        name for name, _ in reference.named_buffers()
    }
    assert (loaded.recipe, loaded.ledger) == (None, None)


def test_tied_weights_stay_tied(originals):
    model = library.load(originals["llama-tied"]).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_floats_are_computed_in_fp32(folder, dtype):
    retensor(
        folder, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
    )
    model = library.load(folder).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = load_file(folder / SINGLE)["model.layers.0.mlp.up_proj.weight"].float()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)


@pytest.fixture
def big(tmp_path):
    """A checkpoint of two tensors of 128 MiB each."""
    tensors = {name: torch.full((32 << 20,), value) for name, value in (("a", 1.0), ("b", 2.0))}
    save_file(tensors, tmp_path / SINGLE)
    return models.Checkpoint(
        "big", tmp_path, None, "", {}, read_header(tmp_path / SINGLE), False, "", "folder"
    )


def test_fp32_weights_are_mapped_from_the_file(big):
    with PeakMemory() as memory:
        for name, tensor in read_tensors(big).items():
            require_finite(name, tensor)
    assert memory.anonymous_bytes - memory.start_bytes < 32 << 20


def test_a_freed_tensor_lets_go_of_its_pages_while_others_live(big):
    tensors = read_tensors(big)
    for name, tensor in tensors.items():
        require_finite(name, tensor)
    before = psutil.Process().memory_info().rss
    del tensors["a"], tensor
    assert before - psutil.Process().memory_info().rss > 120 << 20
    assert tensors["b"][-1] == 2


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.uint16,
        torch.complex64,
    ],
    ids=str,
)
def test_mapped_tensors_are_what_the_library_reads(tmp_path, dtype):
    tensors = {
        "x": torch.arange(3000).view(3, 1000).to(dtype),
        "none": torch.empty(0, 4, dtype=dtype),
        "one": torch.tensor(1).to(dtype),
    }
    save_file(tensors, tmp_path / SINGLE)
    checkpoint = models.Checkpoint(
        "x", tmp_path, None, "", {}, read_header(tmp_path / SINGLE), False, "", "folder"
    )
    found = read_tensors(checkpoint)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (
            found[name].dtype == dtype
            and found[name].shape == tensor.shape
            and torch.equal(found[name], tensor)
        ), name


def test_weights_at_an_odd_address(tmp_path):
    header = b'{"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}'
    header += b" " * (1 - len(header) % 4 + 4)
    values = torch.tensor([1.5, -2.0, 3.0])
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    info = read_header(tmp_path / SINGLE)
    assert info["w"].start % 4
    assert torch.equal(
        read_tensors(models.Checkpoint("x", tmp_path, None, "", {}, info, False, "", "folder"))["w"], values
    )


def test_changing_a_weight_never_changes_the_file(folder):
    content = (folder / SINGLE).read_bytes()
    model = library.load(folder).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert (folder / SINGLE).read_bytes() == content


def test_a_file_that_goes_away_or_shrinks_between_check_and_load(folder):
    checkpoint = library.resolve(folder)
    with (folder / SINGLE).open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match="can no longer be read"):
        library.load(checkpoint)
    (folder / SINGLE).unlink()
    with pytest.raises(InputError, match="can no longer be read"):
        library.load(checkpoint)


def test_loaded_weights_share_the_mapping(originals):
    checkpoint = library.resolve(originals["llama"])
    mapped = read_tensors(checkpoint)
    from qcore.models.assembly import assemble

    model = assemble(checkpoint, dict(mapped), "cpu")
    assert {parameter.data_ptr() for parameter in model.parameters()} == {
        tensor.data_ptr() for tensor in mapped.values()
    }


def test_skeleton_names_and_shapes_are_the_models(originals):
    for kind, folder in originals.items():
        checkpoint = library.resolve(folder)
        shapes = {
            name: parameter.shape for name, parameter in library.load(checkpoint).model.named_parameters()
        }
        assert {
            name: parameter.shape for name, parameter in models.meta_model(checkpoint).named_parameters()
        } == shapes, kind
        assert all(parameter.is_meta for parameter in models.meta_model(checkpoint).parameters())


@pytest.mark.row("8")
@pytest.mark.parametrize(
    "value, what",
    [(float("nan"), "is NaN"), (float("inf"), "is infinite"), (-float("inf"), "is infinite")],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_broken_weights_are_refused_with_name_and_index(folder, value, what, dtype):
    name = "model.layers.1.mlp.down_proj.weight"

    def spoil(tensors):
        tensors[name] = tensors[name].to(dtype)
        tensors[name][3, 77] = value

    retensor(folder, spoil)
    with pytest.raises(InputError, match=rf"{name}\[3, 77\] {what}"):
        library.load(folder)
    assert library.load(folder, check_finite=False).model is not None


def test_the_first_broken_weight_is_found_across_chunks(monkeypatch):
    monkeypatch.setattr("qcore.library.finite._CHUNK", 7)
    tensor = torch.zeros(5, 6)
    tensor[2, 4] = tensor[4, 5] = float("inf")
    with pytest.raises(InputError, match=r"w\[2, 4\] is infinite"):
        require_finite("w", tensor)
    for fine in (torch.zeros(0, 3), torch.tensor(2.0), torch.arange(3), torch.full((20,), 3e38)):
        require_finite("w", fine)


def test_a_checkpoint_can_be_loaded_twice_and_one_model_changed(originals):
    checkpoint = library.resolve(originals["llama"])
    first, second = library.load(checkpoint).model, library.load(checkpoint).model
    before = second.lm_head.weight.clone()
    with torch.no_grad():
        first.lm_head.weight.zero_()
    assert torch.equal(second.lm_head.weight, before)
    assert torch.equal(library.load(checkpoint).model.lm_head.weight, before)


def test_progress_is_reported(originals):
    seen = []
    library.load(originals["llama"], progress=lambda done, total, what: seen.append((done, total, what)))
    assert seen[0] == (0, 21, "reading weights")
    assert len(seen) == 21


def test_generation_config_is_taken_over(folder):
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [7, 257], "temperature": 0.6, "do_sample": True})
    )
    assert library.load(folder).model.generation_config.eos_token_id == [7, 257]


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "moe"])
@torch.no_grad()
def test_a_saved_quantized_model(tmp_path, kind):
    model = tiny.model(kind)
    ledger = quantize(model, parse("int4-g32"))
    folder = safetensors.save(model, tiny.tokenizer(), parse("int4-g32"), ledger, tmp_path / "saved")
    loaded = library.load(folder)
    assert loaded.checkpoint.is_quantized
    assert (loaded.recipe.name, loaded.ledger) == ("int4-g32", ledger)
    assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)


def test_no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="has no tokenizer .there is no tokenizer.json."):
        library.load(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xff"], ids=repr)
def test_a_broken_tokenizer(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match="tokenizer"):
        library.load(folder)


def test_the_tokenizer_is_the_checkpoints(originals):
    tokenizer = library.load(originals["llama"]).tokenizer
    assert tokenizer("hé")["input_ids"] == tiny.tokenizer()("hé")["input_ids"]
    assert tokenizer.bos_token_id == 256

"""The parameters of a model one by one: from memory, from a saved folder and from the checkpoint's files they
are the same entries and the same codes."""

from dataclasses import replace

import pytest
import tiny
import torch
from safetensors import safe_open

from qcore import library
from qcore.base.tensor_file import Piece
from qcore.formats.tensor import QuantizedTensor
from qcore.library import companions, safetensors
from qcore.library.parameters import LoadedParameters, outline
from qcore.models import packaged
from qcore.quantization import convert
from qcore.recipes import parse
from qcore.streaming.parameters import StreamedParameters


def matrices(parameters):
    """Every weight as {(name, expert): parts or tensor}."""
    found = {}
    for entry in parameters.entries:
        for expert in range(entry.experts) if entry.experts else [None]:
            weight = parameters.read(entry, expert)
            coded = isinstance(weight, QuantizedTensor)
            found[entry.name, expert] = weight.parts() if coded else {"": weight}
    return found


@pytest.mark.parametrize("recipe", ["int4-g32-head8", "int4-g32"])
@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "moe"])
def test_memory_folder_and_files_agree(kind, recipe, tmp_path):
    checkpoint = library.resolve(str(tiny.checkpoint(kind, tmp_path / "model")))
    chosen = parse(recipe)
    streamed = StreamedParameters(checkpoint, chosen)
    loaded = library.load(checkpoint)
    ledger = convert.quantize(loaded.model, chosen)
    memory = LoadedParameters(library.Loaded(loaded.model, loaded.tokenizer, checkpoint, chosen, ledger))
    safetensors.save(loaded.model, loaded.tokenizer, chosen, ledger, tmp_path / "saved")
    saved = library.resolve(str(tmp_path / "saved"))
    again = LoadedParameters(library.load(saved))
    bare = [
        (each.name, each.shape, each.format, each.kind, each.shares) for each in outline(checkpoint, chosen)
    ]
    wanted = matrices(streamed)
    for entries in (streamed.entries, memory.entries, again.entries, outline(saved, None)):
        assert [(each.name, each.shape, each.format, each.kind, each.shares) for each in entries] == bare
    for parameters in (memory, again):
        found = matrices(parameters)
        assert set(found) == set(wanted)
        for name, parts in wanted.items():
            assert set(found[name]) == set(parts), name
            assert all(torch.equal(found[name][part].float(), parts[part].float()) for part in parts), name


def test_a_blank_weight_has_the_layout_of_a_real_one(tmp_path):
    checkpoint = library.resolve(str(tiny.checkpoint("llama", tmp_path / "model")))
    parameters = StreamedParameters(checkpoint, parse("nf4-g64"))
    entry = next(each for each in parameters.entries if each.format)
    blank, real = entry.blank().parts(), parameters.read(entry).parts()
    assert {name: (part.dtype, part.shape) for name, part in blank.items()} == {
        name: (part.dtype, part.shape) for name, part in real.items()
    }


def test_a_budget_is_an_entry_with_all_its_candidates(tmp_path):
    checkpoint = library.resolve(str(tiny.checkpoint("llama", tmp_path / "model")))
    recipe = parse("auto-4.25bpw")
    entry = next(each for each in outline(checkpoint, recipe) if each.format)
    assert entry.formats == recipe.weights.candidates


@pytest.mark.parametrize("several", [False, True])
def test_the_files_count_logical_weights(several, tmp_path):
    pieces = [Piece("a", torch.int32, (4, 8)), Piece("b", torch.float16, (4,)), Piece("c", torch.int8, (3,))]
    with companions.Shards(tmp_path, pieces, 256, 100 if several else 1 << 20) as shards:
        for piece in pieces:
            tensor = torch.ones(piece.shape, dtype=piece.dtype)
            for part in tensor.split(2):
                shards.write(piece.name, part)
    assert len(shards.files) == (2 if several else 1)
    if several:
        assert '"total_parameters": 256' in (tmp_path / "model.safetensors.index.json").read_text()
        return
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["total_parameters"] == "256" and set(file.keys()) == set("abc")


def test_the_template_is_in_both_places(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE.txt").write_text("free")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Model\n")
    checkpoint = library.resolve(str(folder))
    out = tmp_path / "out"
    out.mkdir()
    assert companions.carry(checkpoint, library.load(checkpoint).model, out) == ()
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert '"chat_template": "{{ messages }}"' in (out / "tokenizer_config.json").read_text()
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (out / "LICENSE.txt").exists()
    assert (out / "generation_config.json").exists()


def test_no_licence_is_other_and_said(tmp_path):
    checkpoint = library.resolve(str(tiny.checkpoint("llama", tmp_path / "model")))
    (out := tmp_path / "out").mkdir()
    (note,) = companions.carry_licence(checkpoint, out)
    assert "names no licence" in note and companions.licence(checkpoint) is None


@pytest.mark.parametrize("name", packaged.SUMMARIES)
def test_the_licence_of_a_default_model_is_known(name, tmp_path):
    """A default model is converted without a card, so its exports were given the licence "other"."""
    checkpoint = replace(
        library.resolve(str(tiny.checkpoint("llama", tmp_path / "model"))), name=name, source="default"
    )
    (out := tmp_path / "out").mkdir()
    assert companions.licence(checkpoint) == "apache-2.0" and companions.carry_licence(checkpoint, out) == ()


def test_every_end_of_text_is_known(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [257, 3]}')
    assert companions.eos_ids(library.resolve(str(folder))) == (257, 3)

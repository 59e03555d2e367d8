"""Exports of text models inside wrappers: names come back as they were stored, and towers with them."""

from pathlib import Path

import pytest
import torch
import transformers
import wrapped_models
from safetensors.torch import load_file, save_file
from wrapped_models import text_logits

from qcore.base.errors import InputError
from qcore.recipes import parse
from qcore.verbs import export

IDS = torch.arange(40, 72)[None]
PREFIXES = {
    "older": {
        "model.language_model.": "language_model.model.",
        "model.": "",
        "lm_head.": "language_model.lm_head.",
    },
    "newer": {},
}


def _stored_as(names: str, folder: Path) -> dict[str, torch.Tensor]:
    """Store a Mistral 3 wrapper with `names`, and return its tensors."""
    made = wrapped_models.model("mistral3")
    wrapped_models.checkpoint("mistral3", folder)
    tensors = {}
    for name, tensor in made.state_dict().items():
        before, after = next(((b, a) for b, a in PREFIXES[names].items() if name.startswith(b)), ("", ""))
        tensors[after + name.removeprefix(before)] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


@pytest.mark.parametrize("names", PREFIXES)
def test_names_come_back_as_they_were_stored(names, tmp_path):
    own = _stored_as(names, tmp_path / "model")
    export.run(
        str(tmp_path / "model"),
        parse("int4-g32-sym"),
        tmp_path / "out",
        to="compressed-tensors",
        progress=lambda *step: None,
    )
    written = load_file(tmp_path / "out" / "model.safetensors")
    plain = {name for name in written if not name.endswith(("_packed", "_scale", "_shape", "_zero_point"))}
    packed = {f"{name.removesuffix('_packed')}" for name in written if name.endswith("_packed")}
    assert plain | packed == set(own)
    assert packed == {
        name for name in own if ".layers." in name and "language_model" in name and own[name].ndim > 1
    }
    for name in plain:
        assert torch.equal(written[name].float(), own[name]), name
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").model_type == "mistral3"


def test_a_target_that_does_not_know_the_wrapper_says_so(tmp_path):
    _stored_as("newer", tmp_path / "model")
    with pytest.raises(InputError, match="mistral3"):
        export.run(
            str(tmp_path / "model"), parse("fp32"), tmp_path / "out", to="gguf", progress=lambda *step: None
        )


def test_the_compressed_wrapper_runs_in_transformers(tmp_path):
    wrapped_models.checkpoint("mistral3", tmp_path / "model")
    export.run(
        str(tmp_path / "model"),
        parse("int8-g32-sym"),
        tmp_path / "out",
        to="compressed-tensors",
        progress=lambda *step: None,
    )
    again = transformers.Mistral3ForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    own = text_logits(wrapped_models.model("mistral3"), IDS)
    assert (text_logits(again, IDS) - own).abs().mean() < 0.05 * own.abs().mean()

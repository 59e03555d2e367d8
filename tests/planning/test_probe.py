"""The probe on tiny models: copies of the right shapes, results that are kept, failures that are told."""

import json
from copy import deepcopy
from dataclasses import asdict, replace

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from qcore import library, models, runtime
from qcore.base.files import write_json
from qcore.layers.inventory import inventory
from qcore.planning import hindsight, probe, sample
from qcore.quantization.convert import quantize
from qcore.recipes import parse

OWN = ("int8", "int4-g64", "int4-g32-head8", "nf4-g64-dq", "kmeans4", "kmeans4-g64", "int4-g64-gptq", "int3")


pytestmark = pytest.mark.usefixtures("own_home")


def parts(model):
    return {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor, shared in inventory(model) if not shared
    }


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_a_copy_holds_what_the_quantized_model_would(kind, name):
    recipe = parse(name)
    model = tiny.model(kind)
    copy = sample.build(sample.shortened(model.config, 2), recipe)
    with torch.no_grad():
        assert copy(torch.arange(8)[None]).logits.isfinite().all()
    if not recipe.calibrated:
        quantize(model, recipe)
        assert parts(copy) == parts(model)
        assert runtime.explain(copy) == runtime.explain(model)


@pytest.mark.parametrize("name", ["fp32", "bf16", "torch-dynamic-int8"])
def test_copies_for_floats_and_other_libraries_run(name):
    copy = sample.build(tiny.CONFIGS["llama"], parse(name))
    with torch.no_grad():
        assert copy(torch.arange(8)[None]).logits.isfinite().all()


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_shortened_configs_have_so_many_blocks(kind):
    copy = sample.build(sample.shortened(tiny.CONFIGS[kind], 1), parse("int8"))
    assert copy.config.get_text_config().num_hidden_layers == 1
    assert {
        name.split(".")[2] for name, _ in copy.named_parameters() if ".layers." in name or ".h." in name
    } <= {"0"}


def test_depth_covers_the_cache_and_respects_memory(monkeypatch):
    from transformers import LlamaConfig

    with torch.device("meta"):
        model = tiny.AutoModelForCausalLM.from_config(
            LlamaConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                vocab_size=258,
            )
        )
    monkeypatch.setattr(probe, "last_level_cache", lambda: 32 << 20)
    monkeypatch.setattr(probe, "available_bytes", lambda: 8 << 30)
    block = 4 * 1024 * 1024 + 3 * 1024 * 4096
    assert probe.depth_for(model, parse("fp32")) == -(-2.5 * (32 << 20) // (4 * block))
    assert probe.depth_for(model, parse("int4-g64")) > probe.depth_for(model, parse("int8"))
    monkeypatch.setattr(probe, "available_bytes", lambda: 400_000_000)
    assert probe.depth_for(model, parse("fp32")) == 2
    monkeypatch.setattr(probe, "available_bytes", lambda: 1_000_000)
    with pytest.raises(probe.TooLargeError, match="Leave it out"):
        probe.depth_for(model, parse("fp32"))


def test_what_was_timed_is_kept_and_what_failed_is_told(tmp_path):
    config = deepcopy(tiny.CONFIGS["moe"])
    config.hidden_size, config.intermediate_size = (
        256,
        2048,
    )  # so that blocks take longer than the head's call
    folder = tmp_path / "moe"
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    model = models.meta_model(library.outline(folder))
    seen = []
    found = probe.probe(model, [parse("int8"), parse("bnb-nf4")], progress=lambda *event: seen.append(event))
    good = found["int8"]
    assert good.error is None and good.block_s > 0 and good.layers == good.depth == 2 and good.native
    assert "full precision" in found["bnb-nf4"].error
    assert seen[0] == (0, 2, "timing int8") and seen[-1][:2] == (2, 2)
    assert probe.known(model, parse("int8")) == good
    assert probe.known(model, parse("bnb-nf4")) is None and probe.known(model, parse("int4-g64")) is None
    (place,) = (tmp_path / "home" / "probes").iterdir()
    place.write_text(json.dumps({"recipe": "int8", "another": 1}))
    assert probe.known(model, parse("int8")) is None


def test_probes_of_earlier_versions_still_count(monkeypatch, tmp_path):
    model = models.meta_model(library.outline(tiny.checkpoint("llama", tmp_path / "llama")))
    known = {**asdict(probe.Probe("int8", 2, depth=2, block_s=1.0)), "threads": 2}
    del known["others_share"]
    write_json(probe._place(model, parse("int8")), known)
    found = probe.known(model, parse("int8"))
    assert found.block_s == 1.0 and found.others_share is None and not found.disturbed


@pytest.mark.parametrize(("share", "times"), [(0.5, 1), (0.0, 0), (None, 0)])
def test_a_probe_beside_other_work_is_made_again(monkeypatch, tmp_path, share, times):
    checkpoint = library.outline(tiny.checkpoint("llama", tmp_path / "llama"))
    good = probe.Probe(
        "int8", 2, depth=2, head_s=1.0, block_s=1.0, prefill_block_s=1.0, prompt_tokens=8, bandwidth=1e9
    )
    calls = []
    monkeypatch.setattr(probe, "known", lambda *_: replace(good, others_share=share))
    monkeypatch.setattr(probe, "probe", lambda *_: calls.append(1) or {"int8": good})
    for timed in (False, True):
        found = hindsight.predict(checkpoint, parse("int8"), 8, 4, timed=timed)
        assert found["disturbed"] is (bool(share) and not timed)
    assert len(calls) == times


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_timed_in_the_numbers_that_the_model_computes_in(dtype):
    assert probe._head_seconds(tiny.model("llama").to(dtype), repeats=1) > 0

"""The native step inside wrappers: the same tokens as the modules, or the modules."""

import functools

import pytest
import torch
import wrapped_models

from qcore import runtime
from qcore.layers.modules import QuantLinear
from qcore.quantization.convert import quantize
from qcore.recipes import parse
from qcore.runtime.snapshot import Snapshot
from qcore.runtime.weights import Weights

IDS = torch.tensor([[7, 7, 7, 50, 60, 70, 80, 90], [30, 40, 50, 60, 70, 80, 90, 100]])
MASK = (torch.arange(8) >= torch.tensor([[3], [0]])).long()


def _generate(model) -> torch.Tensor:
    with torch.no_grad():
        return model.generate(IDS, attention_mask=MASK, max_new_tokens=12, do_sample=False, pad_token_id=7)


# a rounding error of one norm moves the logits of this Gemma 4 by 1e-3 if activations are rounded to 16 bits
@pytest.mark.parametrize(
    ("kind", "activations"), [("mistral3", None), ("gemma3", None), ("gemma4", "fp32"), ("llava", None)]
)
def test_a_wrapper_around_a_known_text_model_takes_the_native_step(kind, activations, monkeypatch):
    model = wrapped_models.model(kind)
    quantize(model, parse("int8"))
    for module in model.modules():
        if activations and isinstance(module, QuantLinear):
            module.activations = activations
    assert runtime.reason_against(model) is None
    steps, run = [], Weights.run
    monkeypatch.setattr(Weights, "run", lambda *call, **options: steps.append(1) or run(*call, **options))
    native = _generate(model)
    assert len(steps) == 12  # the prompt, and one per token but the last
    with torch.no_grad():
        logits = model(input_ids=IDS[1:]).logits
    runtime.detach(model)
    assert torch.equal(_generate(model), native)
    with torch.no_grad():
        own = model(input_ids=IDS[1:]).logits
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)


def test_what_a_wrapper_does_to_the_output_of_its_text_model_stays(monkeypatch):
    model = wrapped_models.model("mistral3")
    quantize(model, parse("int8"))
    stack = type(model.base_model)
    forward = stack.forward

    @functools.wraps(forward)
    def shifted(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        output.last_hidden_state += 0.1
        return output

    monkeypatch.setattr(stack, "forward", shifted)
    assert runtime.reason_against(model) is None
    attached = _generate(model)
    runtime.detach(model)
    assert torch.equal(_generate(model), attached)


def test_a_wrapper_that_reads_prompts_without_a_causal_mask_runs_its_modules():
    model = wrapped_models.model("paligemma")
    quantize(model, parse("int8"))
    assert "tokens attend to those before them" in runtime.reason_against(model)


def test_a_snapshot_of_a_wrapper_does_not_hold_its_towers():
    model = wrapped_models.model("mistral3")
    quantize(model, parse("int8"))
    snapshot = Snapshot(model)
    model.model.vision_tower.ln_pre.weight.data = model.model.vision_tower.ln_pre.weight.data.clone()
    assert snapshot.holds()
    norm = model.model.language_model.norm
    norm.weight.data = norm.weight.data.clone()
    assert not snapshot.holds()

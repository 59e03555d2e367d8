"""The text model inside a wrapper takes the native step, from embeddings and from masks that the wrapper
prepares; a mask that the decoder does not compute is left to the modules."""

import copy

import pytest
import torch
import wrapped_models
from decoder_models import ids, make

from qcore import recipes
from qcore.layers.modules import QuantLinear
from qcore.quantization.convert import quantize
from qcore.runtime import Context, detach, explain
from qcore.runtime.masks import padding_of

WRAPPERS = ("gemma3", "mistral3", "llava", "qwen2_audio")


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def both(kind: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a quantized wrapper, and the same one without the native step."""
    model = wrapped_models.model(kind)
    quantize(model, recipes.parse("int4-g32"))
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.activations = "fp32"
    modules = copy.deepcopy(model)
    detach(modules)
    return model, modules


def close(expected: torch.Tensor) -> dict:
    return dict(rtol=0, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize("kind", WRAPPERS)
def test_text_in_a_wrapper_takes_the_native_step(kind, calls):
    model, modules = both(kind)
    assert explain(model) == "whole step in one native call"
    batch = torch.stack([ids(40), ids(40, 1)])
    mask = torch.arange(40) >= torch.tensor([[0], [7]])
    options = dict(max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = modules(input_ids=batch, attention_mask=mask.long()).logits[mask]
    found = model(input_ids=batch, attention_mask=mask.long()).logits[mask]
    torch.testing.assert_close(found, expected, **close(expected))
    one = batch[:1]
    torch.testing.assert_close(
        Context(model).append(one), modules(input_ids=one).logits[:, -1], **close(expected)
    )
    assert calls == [(2, 40), (1, 40)]
    texts = [
        each.generate(input_ids=batch, attention_mask=mask.long(), **options) for each in (modules, model)
    ]
    assert torch.equal(*texts) and calls[2:] == [(2, 40)] + [(2, 1)] * 11


def test_a_wrapper_is_read_once(monkeypatch):
    model, _ = both("gemma3")
    forward = model.get_decoder().forward
    model(input_ids=ids(5)[None])
    state = forward._state
    model(input_ids=ids(9)[None])
    assert state is not None and forward._state is state
    model.config.text_config.sliding_window = 3
    model(input_ids=ids(9)[None])
    assert forward._state is not state


@pytest.mark.parametrize("config", ["llama", "gemma", "granite", "gpt2"])
def test_embeddings_are_inputs_like_tokens(config, calls):
    model, tokens = make(config, "int4-g32", "fp32"), ids(20)[None]
    modules, embeds = copy.deepcopy(model), model.get_input_embeddings()(tokens)
    detach(modules)
    expected = modules(inputs_embeds=embeds).logits
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, expected, **close(expected))
    torch.testing.assert_close(model(tokens).logits, expected, **close(expected))
    assert calls == [(1, 20)] * 2


def causal(starts: list[int], tokens: int, past: int, window: int = 0) -> torch.Tensor:
    """The mask (sequences, 1, tokens, slots) of a causal call after padding."""
    slots, own = torch.arange(past + tokens), torch.arange(past, past + tokens)[:, None]
    allowed = (slots <= own) & (slots > own - window if window else True)
    return torch.stack([allowed & (slots >= start) for start in starts])[:, None]


WINDOWS = {"full_attention": 0, "sliding_attention": 4}


@pytest.mark.parametrize("past", [0, 6])
@pytest.mark.parametrize("is_bool", [True, False], ids=["bool", "float"])
def test_prepared_masks_are_read(past, is_bool):
    starts, shape = [0, 3], torch.Size((2, 5))
    masks = {kind: causal(starts, 5, past, window) for kind, window in WINDOWS.items()}
    if not is_bool:
        lowest = torch.finfo(torch.float32).min
        masks = {kind: torch.where(mask, 0.0, lowest) for kind, mask in masks.items()}
    assert padding_of(masks, None, shape, past, WINDOWS).tolist() == starts
    one = {kind: mask[:1] for kind, mask in masks.items()}
    assert padding_of(one, None, shape, past, WINDOWS) is None
    assert padding_of(dict.fromkeys(WINDOWS), None, shape, past, WINDOWS) is None
    full = masks["full_attention"]
    assert padding_of(full, None, shape, past, {None: 0}).tolist() == starts
    assert padding_of(full, None, shape, past, {None: 4}) is False
    assert padding_of(masks | {"sliding_attention": full}, None, shape, past, WINDOWS) is False
    for row, slot in ((1, past + 4), (4, past + 3)):  # a later token is seen; an earlier one is not
        changed = full.clone()
        changed[0, 0, row, slot] = full[0, 0, 0, past] if row == 1 else full[0, 0, 0, past + 1]
        assert padding_of(masks | {"full_attention": changed}, None, shape, past, WINDOWS) is False
    assert padding_of(full[..., :-1], None, shape, past, {None: 0}) is False


def test_a_bidirectional_mask_goes_to_the_modules(calls):
    model, modules = both("gemma3")
    tokens = ids(20)[None]
    mask = {kind: torch.zeros(1, 1, 20, 20) for kind in ("full_attention", "sliding_attention")}
    expected = modules.get_decoder()(tokens, attention_mask=mask).last_hidden_state
    assert torch.equal(model.get_decoder()(tokens, attention_mask=mask).last_hidden_state, expected)
    assert calls == []

"""Blocks that get and give more than hidden states: inputs per layer, keys and values shared by later blocks,
several streams, tuples; and models that cannot be run block by block."""

import pytest
import tiny
import torch
from small_llama import COMMON, ids, llama, text
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, Gemma4TextConfig, OPTConfig

from qcore.base.errors import InputError
from qcore.layers.select import select
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.blocks import Blocks, find_blocks
from qcore.quantization.calibration.states import gradients
from qcore.quantization.calibration.tail import Tail
from qcore.quantization.convert import quantize
from qcore.quantization.sensitivity.proxy import predict
from qcore.recipes import parse
from qcore.runtime import detach
from tests import zoo

SHARING = dict(
    num_kv_shared_layers=2,
    layer_types=["sliding_attention", "full_attention"] * 2,
    vocab_size_per_layer_input=258,
    hidden_size_per_layer_input=8,
    sliding_window=16,
)
CONFIGS = {
    "gemma3n": Gemma3nTextConfig(
        **COMMON,
        **SHARING,
        intermediate_size=[48] * 4,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
    ),
    "gemma4": Gemma4TextConfig(**COMMON, **SHARING, intermediate_size=48, global_head_dim=32),
    "opt": OPTConfig(
        vocab_size=258,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
        pad_token_id=None,
    ),
}

KINDS = [pytest.param("gemma3n", marks=pytest.mark.slow), "gemma4", "opt"]


def model(kind: str, times: float = 3) -> nn.Module:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(times)
            elif name.endswith("correct_output_scale"):  # 0 at first, which hides the inputs per layer
                parameter.fill_(1)
    return made


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_one_by_one_give_what_the_model_gives(kind):
    whole = model(kind)
    blocks = Blocks(whole)
    states = blocks.embed(ids())
    for position in range(len(blocks)):
        states = [blocks.run(position, state) for state in states]
    tail = Tail(blocks)
    for window, state in zip(ids(), states, strict=True):
        torch.testing.assert_close(
            tail(window, state.hidden), whole(window[None]).logits[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_moments_are_those_of_a_plain_forward_pass(kind):
    """Also when earlier stages of the block are quantized, and its parts come from the cache."""
    whole = model(kind)
    blocks = Blocks(whole)
    own = blocks.inside(select(whole, parse("int8")).targets)
    states = blocks.embed(ids())
    for position in range(len(blocks)):
        work = BlockWork(blocks, position, own[position], states, None, None, text(), lambda what: None)
        assert work.unseen == []
        for stage in work.stages:
            seen = []
            hook = whole.get_submodule(stage.targets[0].module).register_forward_pre_hook(
                lambda module, given, seen=seen: seen.append(given[0].flatten(0, -2))
            )
            for window in ids():
                whole(window[None])
            hook.remove()
            expected = torch.cat(seen)
            (moments,) = work.moments([stage], magnitude=True)
            assert moments.tokens == len(expected)
            torch.testing.assert_close(moments.magnitude, expected.abs().mean(0), rtol=2e-2, atol=1e-3)
            for target in stage.targets:
                work.put(target, [work_code(work, target)])
        states = [blocks.run(position, state) for state in states]


def work_code(work: BlockWork, target):
    from qcore.quantization.methods import quantize as alone

    return alone(work.matrices(target)[0], target.format, "rtn")


@pytest.mark.parametrize("name", ["int4-g32-gptq", "int4-g16-awq", "nf4-g16-imatrix"])
@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_methods_quantize_them(kind, name):
    before, after = model(kind, 1), model(kind, 1)
    forwards = {key for key, module in after.named_modules() if "forward" in vars(module)}
    ledger = quantize(after, parse(name), calibration=text())
    inside = [row for row in ledger.rows if ".layers." in row.name and len(row.shape) == 2]
    assert inside and all(row.format and not row.reason for row in inside)
    detach(after)  # the native step replaces a forward, too
    assert forwards == {key for key, module in after.named_modules() if "forward" in vars(module)}
    with torch.no_grad():
        wanted, made = before(ids()).logits, after(ids()).logits
        assert made.isfinite().all()
        if name.endswith("gptq"):
            quantize(before, parse("int4-g32"))
            assert (made - wanted).norm() < 0.6 * (before(ids()).logits - wanted).norm()


def test_gradients_reach_a_block_through_the_keys_and_values_of_later_ones():
    whole = model("gemma4")
    blocks = Blocks(whole)
    first = blocks.embed(ids(1))[0]
    state = blocks.run(0, first)
    parameter = whole.model.layers[1].self_attn.v_proj.weight.requires_grad_()
    with torch.enable_grad():
        after = blocks.call(1, state.detached())
        end = blocks.call(3, blocks.call(2, after))
    (wanted,) = torch.autograd.grad(end.hidden.sum(), parameter, retain_graph=True)
    start = blocks.call(2, after).detached()
    slopes = gradients(blocks.call(3, start), [torch.ones_like(start.hidden), *[None] * 4], start.tensors)
    middle = after.detached()
    slopes = gradients(blocks.call(2, middle), slopes, middle.tensors)
    (found,) = gradients(after, slopes, [parameter])
    assert len(middle.tensors) == 1 + 4 and all(slope is not None for slope in slopes[3:])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_sensitivities_of_a_model_with_shared_keys_and_values():
    whole = model("gemma3n")
    targets = list(select(whole, parse("int4-g32")).targets)
    formats = [parse("int8").weights, parse("int3-g32").weights]
    rows = predict(whole, targets, formats, "gptq", text(), lambda *_: None, text())
    assert len(rows) == sum(".layers." in target.name for target in targets)
    assert all(row.loss[0] < row.loss[1] for row in rows)


# -- models of other people ----------------------------------------------------------------------------------


class Stack(nn.Module):
    """A decoder whose blocks return a tuple and read the second output of the block before."""

    def __init__(self, model: nn.Module, between=None, twice: bool = False):
        super().__init__()
        self.embed_tokens, self.layers, self.norm = model.embed_tokens, model.layers, model.norm
        self.rotary_emb, self.between, self.twice = model.rotary_emb, between, twice

    def forward(self, input_ids, use_cache=False, **_):
        hidden, chosen = self.embed_tokens(input_ids), None
        place = self.rotary_emb(hidden, torch.arange(input_ids.shape[1])[None])
        for layer in [*self.layers, *self.layers] if self.twice else self.layers:
            hidden, chosen, _ = layer(hidden, chosen=chosen, place=place)
            hidden = hidden if self.between is None else self.between(hidden)
        return self.norm(hidden)


class Layer(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, hidden, chosen=None, *, place):
        shift = 0 if chosen is None else 0.5 * chosen
        result = self.inner(hidden + shift, position_embeddings=place, attention_mask=None)
        return result, result.roll(1, dims=1), None


def other(**options) -> nn.Module:
    whole = llama()
    for i, layer in enumerate(whole.model.layers):
        whole.model.layers[i] = Layer(layer)
    whole.model = Stack(whole.model, **options)
    return whole


@torch.no_grad()
def test_outputs_that_the_next_block_reads_are_passed_on():
    whole = other()
    blocks = Blocks(whole)
    states = blocks.embed(ids())
    assert states[0].plain and [len(part) for part in [blocks.batches(states)]] == [3]
    for position in range(len(blocks)):
        states = [blocks.run(position, state) for state in states]
    made = whole.model.norm(torch.cat([state.hidden for state in states]))
    torch.testing.assert_close(made, whole.model(ids()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"between": lambda hidden: hidden / 2}, "computes something between its blocks number 1 and 2"),
        ({"twice": True}, "does not run its blocks one after another, each once"),
    ],
    ids=["between", "twice"],
)
def test_a_model_that_does_more_is_refused_before_any_work(options, why):
    whole, seen = other(**options), []
    before = {name: parameter.clone() for name, parameter in whole.named_parameters()}
    with pytest.raises(InputError, match=f"LlamaForCausalLM cannot be run block by block: it {why}"):
        quantize(
            whole, parse("int4-g32-gptq"), calibration=text(), progress=lambda *step: seen.append(step[2])
        )
    assert len(seen) == 1
    assert all(torch.equal(parameter, before[name]) for name, parameter in whole.named_parameters())


class Remembering(nn.Module):
    """A block that reads what the first one left in a place that nobody passes on."""

    def __init__(self, inner: nn.Module, number: int, place: dict):
        super().__init__()
        self.inner, self.number, self.place = inner, number, place

    def forward(self, hidden_states, **keywords):
        if self.number == 0:
            self.place["first"] = hidden_states
        elif self.number == 3:
            hidden_states = hidden_states + self.place["first"]
        return self.inner(hidden_states, **keywords)


def test_a_model_whose_blocks_remember_the_text_before_is_refused():
    whole, place = llama(), {}
    for i, layer in enumerate(whole.model.layers):
        whole.model.layers[i] = Remembering(layer, i, place)
    with pytest.raises(InputError, match="block number 4 by itself computes something else"):
        Blocks(whole).embed(ids())


@pytest.mark.parametrize("name", ["int4-g32-gptq", "nf4-g16-imatrix", "int4-g16-awq"])
def test_inputs_beyond_float32_turn_the_run_red_and_name_the_layer(name):
    whole = llama()
    with torch.no_grad():
        whole.model.layers[1].post_attention_layernorm.weight.fill_(1e30)
    with pytest.raises(InputError, match=r"inputs of model\.layers\.1\.mlp\.gate_proj\.weight, .*float32"):
        quantize(whole, parse(name), calibration=text())


class Pair(nn.Module):
    """A mixture of two experts in modules of their own: tokens go to the second if their first channel is
    above `bound`."""

    def __init__(self, one: nn.Module, other: nn.Module, bound: float):
        super().__init__()
        self.experts, self.bound = nn.ModuleList([one, other]), bound

    def forward(self, hidden):
        flat = hidden.flatten(0, -2)
        second = flat[:, 0] > self.bound
        made = torch.zeros_like(flat)
        for expert, chosen in zip(self.experts, (~second, second), strict=True):
            if chosen.any():
                made[chosen] = expert(flat[chosen])
        return made.view_as(hidden)


@pytest.mark.parametrize(("bound", "reached"), [(0.0, True), (1e6, False)], ids=["some", "none"])
def test_experts_in_modules_of_their_own(bound, reached):
    whole = llama()
    for layer in whole.model.layers:
        layer.mlp = Pair(layer.mlp, type(layer.mlp)(whole.config), bound)
    ledger = quantize(whole, parse("int4-g32-gptq"), calibration=text())
    rows = [row for row in ledger.rows if "experts.1." in row.name]
    assert len(rows) == 12 and all(row.format for row in rows)
    for row in rows:
        if reached:
            assert row.reason is None
        else:
            assert row.reason == "Calibration text does not reach it, so its codes were rounded to nearest."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("int4-g32-gptq", "whose codes were rounded to nearest"),
        ("kmeans4-g32-gptq", "whose codes were chosen by kmeans from the weights alone"),
        ("nf4-g32-imatrix", "whose inputs count alike"),
        ("int4-g32-awq", "whose inputs count alike"),
    ],
)
def test_experts_that_no_text_reaches_have_a_named_fallback(name, words):
    whole = tiny.model("moe")
    with torch.no_grad():
        for layer in whole.model.layers:  # all logits are 0, so the first experts get every token
            layer.mlp.gate.weight.zero_()
    ledger = quantize(whole, parse(name), calibration=text())
    reasons = [row.reason or "" for row in ledger.rows if "experts" in row.name]
    assert any(f"of 4 experts, {words}." in reason for reason in reasons)


def test_learned_rounding_leaves_what_a_block_does_not_use():
    whole = llama()
    whole.model.layers[0].spare_norm = nn.LayerNorm(32)
    few = Calibration("random bytes", "0" * 64, ids(), minutes=0.0001)
    ledger = quantize(whole, parse("int4-g32-signround"), calibration=few)
    assert len(ledger.quantized) == 28
    assert torch.equal(whole.model.layers[0].spare_norm.weight, torch.ones(32))


def test_the_blocks_are_the_decoders_and_not_those_of_an_encoder_beside_them():
    whole = zoo.model("phi4_multimodal")
    name, blocks = find_blocks(whole)
    assert name == "model.layers" and len(blocks) == whole.config.num_hidden_layers

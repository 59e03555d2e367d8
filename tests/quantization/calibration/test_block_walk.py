"""Inputs of a block's layers, against a plain forward pass with hooks; and resuming an interrupted walk."""

import pytest
import tiny
import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.layers.select import select
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.blocks import Blocks, find_blocks
from qcore.quantization.calibration.store import BlockStore
from qcore.quantization.convert import quantize
from qcore.quantization.methods import METHODS
from qcore.recipes import parse
from tests import zoo

KINDS = ["llama", "gpt2", "moe"]


def ids(rows: int = 3, columns: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (rows, columns), generator=torch.Generator().manual_seed(0))


def text() -> Calibration:
    return Calibration("random bytes", "0" * 64, ids())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_one_by_one_give_what_the_model_gives(kind):
    model = tiny.model(kind)
    blocks = Blocks(model)
    states = blocks.embed(ids())
    for position in range(len(blocks)):
        states = [blocks.run(position, state) for state in states]
    expected = model(ids(), output_hidden_states=True).hidden_states[-1]
    norm = getattr(model.base_model, "norm", None) or model.base_model.ln_f
    torch.testing.assert_close(
        norm(torch.cat([state.hidden for state in states])), expected, rtol=1e-4, atol=1e-5
    )


def work_on(model, position: int, original=None) -> BlockWork:
    blocks = Blocks(model)
    targets = [
        target
        for target in select(model, parse("int4-g32")).targets
        if target.module.startswith(f"{blocks.name}.{position}.")
    ]
    states = blocks.embed(ids())
    for before in range(position):
        states = [blocks.run(before, hidden) for hidden in states]
    return BlockWork(blocks, position, targets, states, None, None, text(), lambda what: None)


@torch.no_grad()
def test_stages_are_the_layers_that_share_an_input():
    work = work_on(tiny.model("llama"), 1)
    assert [[target.module.rpartition(".")[2] for target in stage.targets] for stage in work.stages] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert work.unseen == []


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_moments_are_those_of_a_plain_forward_pass(kind):
    model = tiny.model(kind)
    work = work_on(model, 1)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(target.module).register_forward_pre_hook(
            lambda module, arguments, name=target.module: seen.__setitem__(name, arguments[0].flatten(0, 1))
        )
        for target in work.targets
    ]
    model(ids())
    for hook in hooks:
        hook.remove()
    for stage, moments in zip(work.stages, work.moments(work.stages, magnitude=True), strict=True):
        inputs = seen[stage.targets[0].module]
        torch.testing.assert_close(moments.magnitude, inputs.abs().mean(0), rtol=1e-4, atol=1e-6)
        if stage in (work.stages[0], work.stages[2]):  # these read the stream: every token counts the same
            torch.testing.assert_close(
                moments.hessian, 2 / len(inputs) * inputs.T @ inputs, rtol=1e-3, atol=1e-5
            )
        else:
            size = (
                torch.cat([state.hidden for state in work.hidden])
                .flatten(0, 1)
                .square()
                .mean(1, keepdim=True)
                .sqrt()
            )
            assert torch.linalg.eigvalsh(moments.hessian.double()).min() > -1e-6
            assert moments.hessian.shape == (inputs.shape[1],) * 2 and len(size) == len(inputs)


@torch.no_grad()
def test_experts_see_the_tokens_that_the_router_sends():
    model = tiny.model("moe")
    work = work_on(model, 0)
    sent = [0] * 4
    gate = model.model.layers[0].mlp.gate

    def count(module, arguments, output):
        for expert in output[-1].flatten().tolist():
            sent[expert] += 1

    hook = gate.register_forward_hook(count)
    model(ids())
    hook.remove()
    for target in (target for target in work.targets if target.kind == "experts"):
        assert [moments.tokens for moments in work.moments_of_experts(target)] == sent


@torch.no_grad()
def test_experts_in_one_batched_product_see_the_tokens_that_the_router_sends():
    """Llama 4 multiplies all experts by torch.bmm, and tokens of other experts are zeros there: its experts
    once counted as not reached by the text."""
    model = zoo.model("llama4_text").float()
    work = work_on(model, 0)
    sent = [0] * 4
    router = model.model.layers[0].feed_forward.router

    def count(module, arguments, output):
        for expert in output[0].gt(0).nonzero()[:, 1].tolist():
            sent[expert] += 1

    hook = router.register_forward_hook(count)
    model(ids())
    hook.remove()
    experts = [target for target in work.targets if target.kind == "experts"]
    assert len(experts) == 2 and sum(sent) > 0
    for target in experts:
        assert [moments.tokens for moments in work.moments_of_experts(target)] == sent


@pytest.mark.row("31")
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_gptq_goes_on_to_the_same_bits(kind, tmp_path):
    recipe, options = parse("int4-g32-gptq"), {"work": tmp_path, "identity": "model"}

    def stop(done, total, what):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(tiny.model(kind), recipe, calibration=text(), progress=stop, **options)
    (kept,) = tmp_path.glob("blocks-*/00000.safetensors")
    changed = kept.stat().st_mtime_ns
    resumed, whole, seen = tiny.model(kind), tiny.model(kind), []
    quantize(
        resumed,
        recipe,
        calibration=text(),
        progress=lambda done, total, what: seen.append((done, what)),
        **options,
    )
    quantize(whole, recipe, calibration=text())
    assert not any(what.startswith("block 1") for _, what in seen), "the first block was not chosen again"
    assert torch.equal(resumed(ids()).logits, whole(ids()).logits)
    assert changed and not list(tmp_path.glob("blocks-*")), "nothing is left when all is done"


@pytest.mark.parametrize(
    "other",
    [
        {"identity": "another model"},
        {"stamp": "edited since"},
        {"calibration": Calibration("b", "1", ids() + 1)},
    ],
    ids=["model", "files", "text"],
)
def test_blocks_of_other_work_are_not_taken_up(other, tmp_path):
    options = {"work": tmp_path, "identity": "model", "calibration": text()}

    def stop(done, total, what):
        if done == 1:
            raise KeyboardInterrupt

    for each in (options, options | other):
        seen = []
        with pytest.raises(KeyboardInterrupt):
            quantize(
                tiny.model("llama"),
                parse("int4-g64-gptq"),
                **each,
                progress=lambda done, total, what, seen=seen: (seen.append(what), stop(done, total, what)),
            )
        assert any(what.startswith("block 1") for what in seen)


@pytest.mark.row("31")
def test_a_damaged_file_is_a_block_that_is_not_finished(tmp_path, caplog):
    store = BlockStore(tmp_path, {"a": 1})
    store.folder.mkdir(parents=True)
    (store.folder / "00000.safetensors").write_bytes(b"not a tensor")
    assert store.read(0) is None and store.read(1) is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert "00000.safetensors is damaged, so its block is quantized again" in message


def test_a_model_without_a_list_of_blocks_is_refused():
    model = tiny.model("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(InputError, match="no list of decoder blocks"):
        find_blocks(model)


def test_text_is_needed_and_layers_alone_cannot_be_calibrated():
    from qcore.quantization import methods

    assert {each.info.name for each in METHODS.values() if each.info.needs_text} >= {
        "gptq",
        "awq",
        "kmeans-hessian",
        "signround",
        "distilled",
    }
    with pytest.raises(InputError, match="calibration text"):
        quantize(tiny.model("llama"), parse("int4-g64-gptq"))
    with pytest.raises(InputError, match="cannot quantize a single weight"):
        methods.quantize(torch.randn(8, 64), parse("int4-g64").weights, "gptq")


def test_skipped_layers_stay_and_the_others_are_calibrated():
    model = tiny.model("llama")
    before = model.model.layers[0].mlp.down_proj.weight.clone()
    ledger = quantize(model, parse("int4-g64-gptq").with_modules(skip=("layers.0.mlp",)), calibration=text())
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, before)
    assert len(ledger.quantized) == 14 - 3
    assert ledger.calibration["text"]["name"] == "random bytes"


def test_a_head_outside_the_blocks_says_that_it_was_rounded():
    ledger = quantize(
        tiny.model("llama"), parse("int4-g64-gptq").with_modules(head="same"), calibration=text()
    )
    (row,) = (row for row in ledger.rows if row.name == "lm_head.weight")
    assert row.format == "int4-g64" and "rounded to nearest" in row.reason

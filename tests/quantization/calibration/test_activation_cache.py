"""The activation cache returns the outputs that the finished parts of a block would compute, and drops them
when a weight changes."""

import pytest
import tiny
import torch

from qcore.layers.select import select
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.activation_cache import ActivationCache
from qcore.quantization.calibration.block_work import BlockWork
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.states import join
from qcore.quantization.methods import quantize
from qcore.recipes import parse


def work_on(kind: str) -> BlockWork:
    """A block of a tiny model with three windows."""
    ids = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))
    model = tiny.model(kind)
    blocks, recipe = Blocks(model), parse("int4-g32")
    targets = [
        target for target in select(model, recipe).targets if target.module.startswith(f"{blocks.name}.0.")
    ]
    text = Calibration("random bytes", "0" * 64, ids)
    work = BlockWork(blocks, 0, targets, blocks.embed(ids), None, None, text, lambda what: None)
    return work


def put(work: BlockWork, stage) -> None:
    for target in stage.targets:
        work.put(target, [quantize(matrix, target.format, "rtn") for matrix in work.matrices(target)])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_moments_are_the_same_as_without(kind):
    work, plain = work_on(kind), work_on(kind)
    plain.cache._children.clear()  # nothing is ever cached
    for stage, other in zip(work.stages, plain.stages, strict=True):
        (own,), (expected,) = work.moments([stage]), plain.moments([other])
        assert torch.equal(own.hessian, expected.hessian)
        put(work, stage)
        put(plain, other)
    if kind == "llama":
        assert set(work.cache._ends) == {"self_attn", "mlp"}
        ran = []
        work.block.mlp.gate_proj.register_forward_pre_hook(lambda *_: ran.append(1))
    for number, part in enumerate(work.batches):
        state = join(work.hidden[part])
        with work.cache.batch(number), plain.cache.batch(number):
            assert torch.equal(work.run(state).hidden, plain.run(state).hidden)
    assert work.cache._outputs and not plain.cache._outputs
    assert kind != "llama" or not ran  # the feed-forward part resumes from the inputs of its last layer


@torch.no_grad()
def test_inputs_that_no_longer_hold_are_forgotten():
    work = work_on("llama")
    for stage in work.stages:
        work.moments([stage])
        put(work, stage)
    assert work.cache._inputs
    put(work, work.stages[0])  # new weights in the first layers of the attention change everything after them
    with work.cache.batch(0):
        again = work.run(join(work.hidden[work.batches[0]])).hidden
    plain = work_on("llama")
    for stage in (*plain.stages, plain.stages[0]):
        put(plain, stage)
    with plain.cache.batch(0):
        torch.testing.assert_close(again, plain.run(join(plain.hidden[plain.batches[0]])).hidden)


@torch.no_grad()
def test_a_finished_child_runs_once_for_each_batch_until_something_changes():
    class Child(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.ran = torch.nn.Linear(2, 2), 0

        def forward(self, inputs):
            self.ran += 1
            return self.layer(inputs)

    block = torch.nn.Sequential()
    block.first, block.second = Child(), Child()
    cache = ActivationCache(
        block, "block.0", [["block.0.first.layer.weight"], ["block.0.second.layer.weight"]]
    )

    def run() -> tuple[int, int]:
        before = block.first.ran, block.second.ran
        for number in range(3):
            with cache.batch(number):
                block(torch.ones(1, 2))
        return block.first.ran - before[0], block.second.ran - before[1]

    assert run() == (3, 3)
    cache.mark_quantized("block.0.first.layer.weight")
    assert run() == (3, 3) and run() == (0, 3)
    cache.mark_quantized("block.0.second.layer.weight")
    assert run() == (0, 3) and run() == (0, 0)
    cache.mark_quantized(
        "block.0.second.layer.weight"
    )  # chosen again: only the outputs that depend on it are dropped
    assert run() == (0, 3)
    cache.invalidate("block.0.first.layer.weight")
    assert run() == (3, 3)
    cache.invalidate()
    assert run() == (3, 3) and run() == (0, 0)
    assert "forward" not in vars(block.first)

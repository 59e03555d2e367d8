"""Quantized layers in several threads: packing is invisible to threads that read or run the layer
meanwhile."""

import threading

import torch

from qcore import recipes
from qcore.layers import modules
from qcore.layers.modules import QuantLinear
from qcore.quantization.methods.rtn import quantize


def layer(recipe: str) -> QuantLinear:
    """A layer of 64 outputs and 96 inputs."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    return QuantLinear(quantize(weight, recipes.parse(recipe).weights), None, "fp32")


class Watched(dict):
    """Buffers of `layer`, whose weight another thread reads after every single change."""

    def __init__(self, layer: QuantLinear):
        super().__init__(layer._buffers)
        self._layer, self.read = layer, []

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        self.read.append(self._layer.weight)

    def update(self, *args):
        super().update(*args)
        self.read.append(self._layer.weight)


def test_the_weight_can_be_read_at_every_moment_of_packing():
    linear = layer("int4-g32-dq")
    expected = linear.weight
    buffers = linear._buffers = Watched(linear)
    linear.executable()
    assert linear.packed is not None and buffers["codes"] is None
    linear.restore()
    assert linear.packed is None and buffers["codes"] is not None
    assert len(buffers.read) >= 2 and all(torch.equal(weight, expected) for weight in buffers.read)


def test_a_layer_that_cannot_be_packed_runs_while_another_one_is_packed():
    linear, results = layer("int4-g24"), []
    with modules._packing:
        thread = threading.Thread(target=lambda: results.append(linear(torch.ones(1, 96))), daemon=True)
        thread.start()
        thread.join(timeout=20)
        assert len(results) == 1


def test_asking_whether_a_layer_can_be_packed_packs_nothing():
    fits, does_not = layer("int4-g32"), layer("int4-g24")
    assert fits.reason_for_reference() is None and fits.packed is None
    assert "not a multiple of 32" in does_not.reason_for_reference()
    fits.executable()
    assert fits.packed is not None and fits.reason_for_reference() is None

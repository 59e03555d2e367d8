"""Byte layouts of ggml's types, against the decoder of the package `gguf`."""

import gguf
import pytest
import torch
from interop.ggml_bytes import decoded, random_blocks

from qcore.interop.ggml_blocks import LAYOUTS

IQ4_NL = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
ZEROS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "Q3_K": 4, "Q6_K": 32}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_block_has_the_size_that_ggml_gives_it(name):
    layout = LAYOUTS[name]
    assert (layout.inputs, layout.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_writing_the_fields_gives_the_same_bytes(name):
    data = random_blocks(name)
    assert torch.equal(LAYOUTS[name].write(LAYOUTS[name].read(data)), data)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_fields_mean_what_gguf_decodes(name):
    data = random_blocks(name)
    layout, fields = LAYOUTS[name], LAYOUTS[name].read(data)
    groups = 1 if layout.scales is None else layout.scales.groups
    codes = fields.codes.float() - ZEROS.get(name, 0)
    if name.startswith("IQ4"):
        codes = IQ4_NL.float()[fields.codes.int()]

    def per_input(scale: torch.Tensor, small: torch.Tensor | None) -> torch.Tensor:
        per_group = scale.float().repeat_interleave(groups, 1) * (1 if small is None else small.float())
        return per_group.repeat_interleave(layout.inputs // groups, 1)

    values = per_input(fields.scale, fields.scale_codes) * codes
    if fields.minimum is not None:
        shift = per_input(fields.minimum, fields.min_codes)
        values = values + shift if fields.min_codes is None else values - shift
    assert torch.equal(values, decoded(name, data))

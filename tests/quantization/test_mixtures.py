"""`gguf-q4_k_m` and the like on whole models: the format of each tensor."""

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.layers.select import select
from qcore.quantization.convert import quantize
from qcore.recipes import parse


def wide(tied: bool = False) -> LlamaForCausalLM:
    """A Llama of 8 blocks whose rows are whole super-blocks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def formats(model, name: str) -> dict[str, str]:
    return {row.name: row.format for row in quantize(model, parse(name)).quantized}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_file_of_q4_k_m_as_llama_cpp_writes_it(tied):
    found = formats(wide(tied), "gguf-q4_k_m")
    more = {"gguf-q6_k": [0, 3, 6, 7], "gguf-q4_k": [1, 2, 4, 5]}  # of 8 blocks
    for format, blocks in more.items():
        for block in blocks:
            assert found[f"model.layers.{block}.mlp.down_proj.weight"] == format
            assert found[f"model.layers.{block}.self_attn.v_proj.weight"] == format
    assert {found[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(8)} == {"gguf-q4_k"}
    assert found["model.embed_tokens.weight"] == ("gguf-q6_k" if tied else "gguf-q4_k")
    assert tied or found["lm_head.weight"] == "gguf-q6_k"


def test_rows_that_are_not_whole_super_blocks_get_other_types():
    found = formats(tiny.model("llama"), "gguf-q4_k_m")
    assert found["model.layers.0.mlp.up_proj.weight"] == "gguf-q5_0"
    assert found["lm_head.weight"] == "int8-g32-sym"


def test_positions_are_kept():
    model = tiny.model("gpt2")
    selection = select(model, parse("gguf-q4_k_m"))
    assert "transformer.wpe.weight" in selection.kept
    assert all(isinstance(target.format, Format) for target in selection.targets)
    values = next(each for each in selection.targets if each.name == "transformer.h.1.attn.c_attn.weight")
    assert values.format.label == "int8-g32-sym", "values share their matrix with queries and keys"


@pytest.mark.parametrize("option", ["g32", "sym", "dq", "4bpw"])
def test_a_mixture_takes_no_option_for_its_grids(option):
    with pytest.raises(InputError, match="mixture of fixed types"):
        parse(f"gguf-q4_k_m-{option}")

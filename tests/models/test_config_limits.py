"""No number, list or text of a config.json makes a class of transformers loop or allocate."""

import json
import time

import pytest
from edits import edit

from qcore import library
from qcore.base.errors import InputError
from qcore.models.config import read_config, to_transformers
from qcore.models.config_limits import check_against, check_fields, check_sizes
from qcore.models.headers import TensorInfo
from tests.zoo import build

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
TENSORS = {f"t{i}": TensorInfo("F32", (64, 64), 16384, "model.safetensors", 0) for i in range(20)}
HUGE = 10**9


@pytest.mark.row("F8", "10")
@pytest.mark.parametrize(
    "values",
    [
        {"num_labels": HUGE},
        {"encoder_layers": HUGE},
        {"vision_config": {"depth": HUGE}},
        {"perception": [{"num_conv_layers": HUGE}]},
        {"layer_types": ["full_attention"] * 5000},
        {"hybrid_override_pattern": "M-" * 5000},
        {"id2label": {str(i): "x" for i in range(70_000)}},
        {"notes": [0] * 1_000_000},
        {"license": "x" * 1_000_000},
        {"num_hidden_layers": 2000, "num_experts": 1000},
    ],
    ids=lambda values: "-".join(values),
)
def test_before_anything_is_imported(values):
    with pytest.raises(InputError, match="config.json has ") as caught:
        check_sizes(LLAMA | values)
    assert len(str(caught.value)) < 300


@pytest.mark.row("F8", "10")
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("blenderbot", {"encoder_layers": HUGE, "decoder_ffn_dim": HUGE}),
        ("blenderbot", {"decoder_attention_heads": HUGE}),
        ("llama", {"head_dim": 10**5}),
        ("llama", {"pretraining_tp": HUGE}),
        ("llama", {"eos_token_id": [1, 1 << 40]}),
        ("mamba2", {"n_groups": HUGE}),
        ("mamba2", {"state_size": HUGE}),
        ("gemma3", {"vision_config": {"model_type": "siglip_vision_model", "image_size": HUGE}}),
        ("gemma3n_text", {"laurel_rank": HUGE}),
        ("deepseek_v3", {"n_group": HUGE}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_every_number_of_a_known_field_has_a_limit(kind, values):
    began = time.process_time()
    with pytest.raises(InputError, match="config.json has "):
        config = {"model_type": kind, **values}
        check_sizes(config)
        to_transformers(config)
    assert time.process_time() - began < 20  # the imports


def test_usual_numbers_have_room():
    config = {
        **{"model_type": "llama", "max_position_embeddings": 10_485_760, "vocab_size": 262_400},
        **{"rope_theta": 10**10, "sliding_window": 1 << 20, "num_hidden_layers": 126, "num_experts": 512},
        **{"global_step": 10**9, "trained_tokens": 15 * 10**12, "bos_token_id": -1, "head_dim": 512},
    }
    check_sizes(config)
    check_fields(config, {"max_position_embeddings", "rope_theta", "sliding_window", "bos_token_id"})


@pytest.mark.row("F8", "7")
def test_layers_need_tensors():
    check_against(LLAMA | {"encoder_layers": 512}, TENSORS)
    for values in ({"encoder_layers": 513}, {"vision_config": {"depth": 600}}, {"layer_types": ["x"] * 600}):
        with pytest.raises(InputError, match="but the weight files hold only 20 tensors"):
            check_against(LLAMA | values, TENSORS)


@pytest.mark.row("F8", "10")
def test_tables_that_are_computed_by_the_config(tmp_path):
    """GPT-J's table of positions, which no file holds, took 17 GB before the first weight was compared."""
    folder = build("gptj", tmp_path / "gptj")
    edit(folder / "config.json", lambda config: config | {"n_positions": 1 << 28})
    with pytest.raises(InputError, match="demands 17.2 GB of computed tables, such as .*embed_positions"):
        library.resolve(folder)


@pytest.mark.row("10")
def test_a_config_that_is_far_too_long(folder):
    with (folder / "config.json").open("ab") as file:
        file.truncate(20_000_000)
    with pytest.raises(InputError, match="limited to 16 MB"):
        library.resolve(folder)


@pytest.mark.row("F18")
@pytest.mark.parametrize("value", [False, None, "no", 0], ids=str)
def test_the_form_of_outputs_is_not_the_configs(folder, value):
    edit(folder / "config.json", lambda config: config | {"return_dict": value, "use_return_dict": value})
    config, _ = read_config(folder)
    assert to_transformers(config).return_dict is True
    assert json.loads((folder / "config.json").read_text())["return_dict"] == value

"""What qcore uses of transformers beyond its documentation still is what it was: one test for each function
of `qcore.base.transformers_internals`. If an upgrade fails here, mend that file, then raise `CHECKED`."""

import logging
import re
import threading
import time
from copy import deepcopy
from pathlib import Path

import accelerate
import gguf_models
import pytest
import tiny
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.utils import logging as library_logging

import qcore
from qcore.base import torch_internals
from qcore.base import transformers_internals as internals
from qcore.library import resolve
from qcore.models.assembly import empty_model, meta_model
from tests.zoo import build
from tests.zoo.shrink import config_of


def test_versions():
    """The installed versions are newer: read their changes, and raise CHECKED once this file passes with
    them."""
    for library in (transformers, torch):
        installed = library.__version__.partition("+")[0].split(".")[:2]
        checked = internals.CHECKED[library.__name__].split(".")[:2]
        assert installed == checked, f"{library.__name__} {library.__version__} was not checked"
    assert hasattr(accelerate, "init_empty_weights")


# -- process-wide state --------------------------------------------------------------------------------------


def state() -> tuple:
    """Return all process-wide state that the functions change."""
    from transformers import core_model_loading as loading
    from transformers import modeling_gguf_pytorch_utils as converter
    from transformers.modeling_utils import PreTrainedModel

    return (
        logging.getLogger("transformers").level,
        library_logging.is_progress_bar_enabled(),
        converter.tqdm,
        loading._materialize_copy,
        PreTrainedModel.init_weights,
        nn.init.normal_,
        nn.Module.register_parameter,
        torch.get_default_dtype(),
    )


def test_quiet_and_back():
    before = state()
    with pytest.raises(KeyboardInterrupt), internals.quiet():
        assert logging.getLogger("transformers").level == logging.CRITICAL
        assert not library_logging.is_progress_bar_enabled()
        raise KeyboardInterrupt
    assert state() == before


def gguf_model():
    return AutoModelForCausalLM.from_config(deepcopy(gguf_models.CONFIG), dtype=torch.float32)


@pytest.mark.parametrize("meta_buffers", [False, True])
def test_a_model_without_weights(meta_buffers):
    before = state()
    model = empty_model(tiny.CONFIGS["llama-tied"], meta_buffers=meta_buffers)
    assert state() == before
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in model.parameters())
    assert all(buffer.is_meta == meta_buffers for buffer in model.buffers()) and list(model.buffers())
    assert model.lm_head.weight is model.model.embed_tokens.weight and not model.training


@pytest.mark.parametrize("name", ["quiet", "without_weights", "without_conversion_bar", "meta_stays_meta"])
def test_two_threads_leave_what_was_there(name):
    """Without the lock the second thread saves the first one's setting, and restores that at the end."""
    options = {"meta_buffers": True} if name == "without_weights" else {}
    before, inside, seen = state(), threading.Semaphore(0), []

    def work(seconds: float) -> None:
        with getattr(internals, name)(**options):
            inside.release()
            time.sleep(seconds)
            seen.append(state())

    first = threading.Thread(target=work, args=(0.2,))
    first.start()
    inside.acquire()
    second = threading.Thread(target=work, args=(0.4,))
    second.start()
    first.join()
    second.join()
    assert state() == before
    assert seen[0][:2] == seen[1][:2] and seen[0] != before


def test_tensors_without_values_are_joined_where_they_are(tmp_path):
    """Qwen4-exp's embedding of n-grams is joined in the memory of the host: its checkpoints did not match
    their config.json."""
    model = meta_model(resolve(build("qwen4_exp_text", tmp_path)))
    joined = [each for name, each in model.named_parameters() if "ngram_embedding" in name]
    assert joined and all(each.is_meta for each in joined)


def test_classes_of_the_old_style():
    gpt_neo, llama = transformers.GPTNeoForCausalLM, transformers.LlamaForCausalLM
    assert internals.is_old_style(gpt_neo) and not internals.is_old_style(llama)


def test_the_converters_bar(tmp_path, capfd):
    gguf_models.write(tmp_path / "model.gguf", gguf_model())
    options = dict(gguf_file="model.gguf", dtype=torch.float32, local_files_only=True)
    AutoModelForCausalLM.from_pretrained(
        str(tmp_path), quantization_config=GgufConfig(dequantize=True), **options
    )
    assert "Converting" in capfd.readouterr().err, "the library draws no bar any more: remove the function"
    with internals.quiet(), internals.without_conversion_bar():
        model = AutoModelForCausalLM.from_pretrained(
            str(tmp_path), quantization_config=GgufConfig(dequantize=True), **options
        )
    assert capfd.readouterr().err == ""
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()


def test_the_settings_of_a_gguf_file(tmp_path):
    gguf_models.write(tmp_path / "model.gguf", gguf_model())
    found = internals.gguf_config(tmp_path / "model.gguf")
    assert found["model_type"] == "llama" and found["hidden_size"] == gguf_models.CONFIG.hidden_size


# -- from stored names to the model's ------------------------------------------------------------------------


def test_names_that_a_model_stores_differently():
    names = internals.StoredNames(empty_model(tiny.CONFIGS["gpt2"]))
    assert names.place("h.0.attn.c_attn.weight") == ("transformer.h.0.attn.c_attn.weight", None, None)
    assert names.place("transformer.wte.weight") == ("transformer.wte.weight", None, None)
    assert names.place("something.else") is None
    assert not names.ignores("something.else")
    expecting = empty_model(tiny.CONFIGS["gpt2"])
    vars(expecting)["_keys_to_ignore_on_load_unexpected"] = {r"^mtp\."}
    assert internals.StoredNames(expecting).ignores("mtp.0.weight")
    assert not internals.StoredNames(expecting).ignores("h.0.mtp.weight")


def test_experts_that_are_stored_one_by_one():
    model = empty_model(tiny.CONFIGS["moe"])
    names = internals.StoredNames(model)
    first, stored = None, {}
    for expert in range(4):
        for part in ("w3", "w1"):
            name = f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight"
            parameter, pattern, rule = names.place(name)
            first = first or parameter
            assert parameter == first == "model.layers.0.mlp.experts.gate_up_proj"
            stored.setdefault(pattern, []).append((name, torch.full((64, 64), expert + (part == "w3") / 2)))
    assert internals.stacks_experts(rule) and internals.rule_targets(rule, first) == [first]
    (made,) = internals.apply_rule(rule, first, stored, model).values()
    assert made.shape == (4, 128, 64)
    assert made[2, 0, 0] == 2 and made[2, 127, 0] == 2.5, "w1 stands above w3"


def test_the_order_of_stored_names():
    names = [f"experts.{i}.w1" for i in range(12)]
    assert sorted(sorted(names), key=internals.stored_order) == names


def test_tied_where_the_library_does_not_tie():
    from transformers.initialization import no_tie_weights

    config = deepcopy(tiny.CONFIGS["llama-tied"])
    with no_tie_weights():
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        internals.tie(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    internals.tie(untied := tiny.model("llama"))
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_a_layer_that_is_absent_is_neither_initialized_nor_reported(kind, caplog):
    """What `HfQuantizer` finds between its two methods."""
    model = empty_model(deepcopy(tiny.CONFIGS[kind]))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D):
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, internals.absent())
    experts = [name for name, module in model.named_modules() if hasattr(module, "is_transposed")]
    for name in experts:
        model.get_submodule(name).down_proj = None
    internals.load_only(model, experts)
    left = {name: torch.ones(part.shape) for name, part in model.state_dict().items()}
    with internals.quiet():
        report = type(model)._finalize_model_loading(*_loaded(model, left))
    assert not report.missing_keys and not report.unexpected_keys
    assert all(bool((part == 1).all()) for part in model.parameters())


def test_the_buffers_of_a_part_that_was_away_are_computed():
    """The scale of Gemma's embedding is in no file."""
    config = config_of("gemma2")
    expected = empty_model(config).get_input_embeddings().embed_scale
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    part = model.get_input_embeddings()
    internals.compute_buffers(model, part)
    assert torch.equal(part.embed_scale, expected) and expected > 8
    assert part.weight.is_meta


def _loaded(model, tensors):
    """The arguments of `_finalize_model_loading` after `tensors` and one that has no place were loaded."""
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(pretrained_model_name_or_path="tiny")
    info, _ = type(model)._load_pretrained_model(model, {**tensors, "a.codes": torch.ones(1)}, None, settings)
    return model, settings, info


# -- key-value caches ----------------------------------------------------------------------------------------


def test_what_each_layer_keeps():
    config = transformers.MistralConfig(num_hidden_layers=2, sliding_window=8)
    assert internals.cache_layers(config) == (["sliding_attention"] * 2, [{"sliding_window": 8}] * 2)
    assert internals.cache_layers(tiny.CONFIGS["llama"]) == (["full_attention"] * 2, [{}, {}])


# -- mixtures of experts -------------------------------------------------------------------------------------


def test_experts_one_at_a_time():
    class Watched(nn.Module):
        def __init__(self, parameter):
            super().__init__()
            self.parameter, self.asked = parameter, []

        def __getitem__(self, expert):
            self.asked.append(int(expert))
            return self.parameter[expert]

    model = tiny.model("moe")
    experts = model.model.layers[0].mlp.experts
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        parameter = experts.down_proj
        del experts.down_proj
        experts.down_proj = Watched(parameter)
        before = model.config._experts_implementation
        assert before != "eager"
        with internals.eager_experts(experts):
            assert torch.allclose(model(ids).logits, expected, atol=1e-5)
        assert set(experts.down_proj.asked) <= set(range(4)) and experts.down_proj.asked
        assert model.config._experts_implementation == before
        internals.use_eager_experts(experts)
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)


# -- hooks ---------------------------------------------------------------------------------------------------


def test_hooks_that_collect_outputs():
    model = tiny.model("llama")
    model(torch.ones(1, 2, dtype=torch.long), output_hidden_states=True)
    hooks = list(torch_internals.registered(model.model.layers[0]).hooks.values())
    assert hooks and all(map(internals.collects_outputs, hooks))
    assert not internals.collects_outputs(print)


PRIVATE = re.compile(
    r"\._(cdata|parameters|buffers|modules|forward_hooks|forward_pre_hooks|global_forward_hooks|non_persistent_buffers_set|experts_implementation|from_config)\b"
    r"|hf_quantizer|_is_hf_initialized|_keys_to_ignore|no_init_weights|core_model_loading|conversion_mapping|StorageWeakRef|gguf_pytorch_utils|get_layer_types_and_kwargs|output_capturing"
)


def test_no_other_file_names_them():
    here = [Path(each.__file__) for each in (internals, torch_internals)]
    root = Path(qcore.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if PRIVATE.search(path.read_text()) and path not in here
    }
    assert not found

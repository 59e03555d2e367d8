"""The baseline's record: exact zeros for an equal model, exact KL for another, and a clear error for an
unrelated model."""

import json
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors import safe_open

from qcore.base.errors import InputError, RunError, UnavailableError
from qcore.evaluation import Reference, evaluate
from qcore.evaluation.reference import find_tensor
from qcore.quantization.convert import quantize
from qcore.recipes import parse


def text(tokens: int = 120, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(seed))


def noisy(kind: str, head: float = 0.0, body: float = 0.0) -> torch.nn.Module:
    """Return `tiny.model(kind)` with noise on its head or on everything else."""
    model = tiny.model(kind)
    own = model.get_output_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=head if parameter is own else body)
    return model


@pytest.fixture(params=tiny.CONFIGS)
def recorded(request, tmp_path):
    path = tmp_path / "reference.safetensors"
    evaluate(tiny.model(request.param), text(), window=40, stride=30, record=path)
    return request.param, path


def test_an_equal_model_gives_exactly_zero_and_one(recorded):
    kind, path = recorded
    result = evaluate(
        tiny.model(kind), text(), window=40, stride=30, reference=Reference.open(path)
    ).divergence
    assert (result.kl_mean, result.kl_max, result.top1_agreement) == (0.0, 0.0, 1.0)
    assert (
        result.window_kl == [0.0] * 4
        and result.harmful_flips == result.beneficial_flips == result.neutral_flips == 0
    )


IN_ANOTHER_PROCESS = """
import json, sys, tiny, torch
from qcore.evaluation import Reference, evaluate
torch.set_num_threads(int(sys.argv[3]))
ids = torch.randint(0, 256, (120,), generator=torch.Generator().manual_seed(0))
model = tiny.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
result = evaluate(model, ids, window=40, stride=30, reference=Reference.open(sys.argv[1]))
print(json.dumps(result.to_dict()))
"""


@pytest.mark.slow
def test_an_equal_model_in_another_process_gives_exactly_zero(tmp_path):
    folder, path = tiny.checkpoint("llama-tied", tmp_path / "model"), tmp_path / "reference.safetensors"
    first = evaluate(tiny.model("llama-tied"), text(), window=40, stride=30, record=path, checkpoint=folder)
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(path), str(folder), str(torch.get_num_threads())]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": ".:tests", "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout.splitlines()[-1])
    assert second["perplexity"] == first.perplexity and second["window_nll"] == first.window_nll
    assert (second["divergence"]["kl_max"], second["divergence"]["top1_agreement"]) == (0.0, 1.0)


@pytest.mark.parametrize("change", [{"body": 0.05}, {"head": 0.05}, {"head": 0.1, "body": 0.1}], ids=str)
def test_kl_is_that_of_the_whole_logits(recorded, change):
    kind, path = recorded
    other, ids = noisy(kind, **change), text()
    result = evaluate(other, ids, window=40, stride=30, reference=Reference.open(path)).divergence
    assert Reference.open(path).tokens_scored == 119
    with torch.no_grad():  # the second window reads tokens 30 to 69 and scores those after position 40
        before, after = (
            m(input_ids=ids[None, 30:70]).logits[0, 10:].double().log_softmax(-1)
            for m in (tiny.model(kind), other)
        )
    expected = (before.exp() * (before - after)).sum(-1)
    assert result.window_kl[1] == pytest.approx(expected.sum().item(), rel=1e-4, abs=1e-6)
    assert 0 < result.kl_mean <= result.kl_max and result.top1_agreement <= 1


@pytest.mark.parametrize("recipe", ["int8", "int4-g32-head8", "bf16", "int8-dynamic"])
def test_quantized_models_compare(recorded, recipe):
    kind, path = recorded
    model = tiny.model(kind)
    quantize(model, parse(recipe))
    result = evaluate(model, text(), window=40, stride=30, reference=Reference.open(path)).divergence
    assert 0 < result.kl_mean < (1e-2 if recipe == "int4-g32-head8" else 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_head_is_read_from_the_checkpoint_if_it_is_there_bit_for_bit(tmp_path, dtype):
    model = tiny.model("llama-tied").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "model")
    model = model.float()
    with_copy, without = tmp_path / "copy", tmp_path / "pointer"
    evaluate(model, text(), record=with_copy)
    evaluate(model, text(), record=without, checkpoint=tmp_path / "model")
    head = tiny.VOCABULARY * 64 * 4
    assert abs(with_copy.stat().st_size - without.stat().st_size - head) < 300  # a header's worth
    other = noisy("llama-tied", head=0.05)
    figures = [
        evaluate(other, text(), reference=Reference.open(path)).divergence.kl_mean
        for path in (with_copy, without)
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


def test_another_weight_is_not_taken_for_the_head(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path)
    model = tiny.model("llama")
    assert find_tensor(model.lm_head.weight, folder).tensor == "lm_head.weight"
    assert find_tensor(model.lm_head.weight + 1e-6, folder) is None


def test_a_head_with_a_bias(tmp_path):
    model = tiny.model("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, tiny.VOCABULARY))
    evaluate(model, text(), record=tmp_path / "r")
    assert evaluate(model, text(), reference=Reference.open(tmp_path / "r")).divergence.kl_max == 0
    other = tiny.model("llama")
    assert evaluate(other, text(), reference=Reference.open(tmp_path / "r")).divergence.kl_mean > 0.05


def test_size_is_tokens_by_hidden(tmp_path):
    evaluate(
        tiny.model("llama-tied"),
        text(),
        record=tmp_path / "r",
        checkpoint=tiny.checkpoint("llama-tied", tmp_path / "model"),
    )
    data = 119 * 64 * 4 + tiny.VOCABULARY * 4
    assert data < (tmp_path / "r").stat().st_size < data + 1024
    with safe_open(tmp_path / "r", "pt") as file:
        assert set(file.keys()) == {"hidden", "check"}


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        (text(119), {}, "another text"),
        (text(seed=1), {}, "another text"),
        (text(), {"window": 41}, "window 40, stride 30, not window 41"),
        (text(), {"stride": 40}, "stride 30, not window 40, stride 40"),
    ],
)
def test_what_was_not_recorded_is_refused(tmp_path, ids, options, words):
    evaluate(tiny.model("llama"), text(), window=40, stride=30, record=tmp_path / "r")
    with pytest.raises(InputError, match=words):
        evaluate(
            tiny.model("llama"),
            ids,
            **{"window": 40, "stride": 30, **options},
            reference=Reference.open(tmp_path / "r"),
        )


def test_a_model_with_another_vocabulary_is_refused(tmp_path):
    evaluate(tiny.model("llama"), text(), record=tmp_path / "r")
    other = tiny.model("gpt2")
    other.resize_token_embeddings(300, mean_resizing=False)
    with pytest.raises(InputError, match="258 words and this model's has 300"):
        evaluate(other, text(), reference=Reference.open(tmp_path / "r"))


def test_a_changed_checkpoint_is_noticed(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path / "model")
    evaluate(tiny.model("llama"), text(), record=tmp_path / "r", checkpoint=folder)
    tiny.checkpoint("llama", folder, seed=1)
    with pytest.raises(InputError, match="does not match its checkpoint any more"):
        Reference.open(tmp_path / "r")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="record it again"):
        Reference.open(tmp_path / "r")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign", "another version"])
def test_a_damaged_record_is_refused(tmp_path, damage):
    path = tmp_path / "r"
    if damage != "missing":
        evaluate(tiny.model("llama"), text(), record=path)
        data = path.read_bytes()
        path.write_bytes(
            {
                "empty": b"",
                "cut": data[:-10],
                "another version": data.replace(b"reference-1", b"reference-9"),
            }.get(damage, b"\x08\0\0\0\0\0\0\0{}      ")
        )
    with pytest.raises(InputError, match="cannot be read"):
        Reference.open(path)


def test_a_recording_that_fails_leaves_nothing(tmp_path):
    model = tiny.model("llama")
    calls = []

    def stop(done, total, phrase):
        calls.append(done)
        raise RunError("stopped")

    with pytest.raises(RunError):
        evaluate(model, text(), window=40, record=tmp_path / "r", progress=stop)
    assert calls and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        evaluate(tiny.model("llama"), text(), record=tmp_path / "nowhere" / "r")


def test_a_head_that_cannot_be_separated_cannot_be_recorded(tmp_path):
    model = tiny.model("llama")
    model.get_output_embeddings = lambda: None
    with pytest.raises(UnavailableError, match="cannot serve as the baseline"):
        evaluate(model, text(), record=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []

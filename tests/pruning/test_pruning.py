"""Pruned models: zeros in the right places, smaller files, ordinary models after structured pruning, and
errors for invalid requests."""

import json

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

import qcore
from qcore import library
from qcore.base import texts
from qcore.base.errors import InputError
from qcore.cli import main
from qcore.evaluation import evaluate
from qcore.layers.modules import QuantizedModule
from qcore.pruning import masks, structured
from qcore.pruning.masks import Amount
from qcore.pruning.structured import Cut
from qcore.recipes import parse
from qcore.verbs import prune as verb

pytestmark = pytest.mark.usefixtures("own_home")


def quiet(*step) -> None:
    pass


def prune(model, method, amount, folder, **options) -> dict:
    asked = verb.Prune(method=method, amount=amount, **options)
    return verb.run(model, asked, folder, progress=quiet)


def ids(rows: int = 3, length: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(0))


def linear_zeros(model) -> tuple[int, int]:
    """Return (zeros, weights) of the block's matrices."""
    weights = [
        value
        for name, value in model.named_parameters()
        if value.ndim > 1 and ("layers" in name or ".h." in name) and "gate.w" not in name
    ]
    return sum(int((value == 0).sum()) for value in weights), sum(value.numel() for value in weights)


@pytest.mark.parametrize("kind", list(tiny.CONFIGS))
@pytest.mark.parametrize("method", ["wanda", "magnitude", "2:4"])
def test_half_of_the_weights_of_every_architecture_become_zero(kind, method):
    model = tiny.sharp(kind)
    kept = masks.prune(model, Amount(method), ids(), quiet)
    assert all(share == 0.5 for share in masks.sparsity(kept).values())
    zeros, weights = linear_zeros(model)
    assert zeros == weights / 2
    assert all(torch.isfinite(model(ids()).logits).flatten().tolist())


def test_the_norms_of_inputs_are_those_of_the_text():
    model = tiny.sharp("llama")
    seen = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].flatten(0, -2))
    )
    model(ids())
    hook.remove()
    from qcore.layers.select import select
    from qcore.quantization.calibration.blocks import Blocks

    blocks = Blocks(model)
    hidden = [blocks.run(0, state) for state in blocks.embed(ids())]
    targets = [
        target
        for target in select(model, parse("int8")).targets
        if target.module.startswith("model.layers.1.")
    ]
    found = masks.input_norms(blocks, 1, targets, hidden)
    torch.testing.assert_close(
        found["model.layers.1.mlp.down_proj.weight"][0], torch.cat(seen).norm(dim=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "order", "recipe"),
    [
        ("llama", "before", "int3-g64"),
        ("llama", "after", "nf4-g32"),
        ("gpt2", "before", "int8"),
        ("gpt2", "after", "int4-g32-sym"),
        ("moe", "before", "int4-g32-gptq"),
        ("moe", "after", "int4-g32"),
    ],
    ids=[f"{i}" for i in range(6)],
)
def test_pruned_codes_stand_for_zero_and_are_stored_without_them(tmp_path, kind, order, recipe):
    folder = str(tiny.checkpoint(kind, tmp_path / kind))
    whole = making_quantized(folder, recipe)
    result = prune(folder, "wanda", 0.5, tmp_path / "out", recipe=parse(recipe), order=order, tokens=256)
    loaded = library.load(str(tmp_path / "out"))
    pruned = {row.name: row for row in loaded.ledger.rows if row.sparsity}
    assert pruned and all(row.sparsity == 0.5 for row in pruned.values())
    for name, module in loaded.model.named_modules():
        if isinstance(module, QuantizedModule) and "head" not in name and "embed" not in name:
            assert float((module.weight == 0).float().mean()) >= 0.5
    assert loaded.ledger.stored_bytes == result["stored_bytes"] < whole
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size == pytest.approx(result["stored_bytes"], rel=0.1)  # the file also holds names and shapes
    assert loaded.ledger.pruning["method"] == "wanda" and torch.isfinite(loaded.model(ids()).logits).all()


def making_quantized(folder: str, recipe: str) -> int:
    return qcore.quantize(folder, recipe, calibration_tokens=512).ledger.stored_bytes


@pytest.mark.slow
def test_an_unquantized_model_is_stored_sparse_and_comes_back_bit_by_bit(tmp_path):
    folder = str(tiny.checkpoint("llama-tied", tmp_path / "m"))
    dense = prune(folder, "magnitude", 0.6, tmp_path / "dense")
    sparse = prune(folder, "magnitude", 0.6, tmp_path / "sparse", sparse=True)
    assert library.resolve(str(tmp_path / "dense")).description.endswith("by pruning: magnitude, 60 %.")
    one, other = library.load(str(tmp_path / "dense")).model, library.load(str(tmp_path / "sparse"))
    for (name, value), (_, twin) in zip(one.named_parameters(), other.model.named_parameters(), strict=True):
        assert torch.equal(value, twin), name
    assert sparse["stored_bytes"] == other.ledger.stored_bytes < 0.8 * dense["stored_bytes"]
    with torch.no_grad():
        assert torch.equal(
            AutoModelForCausalLM.from_pretrained(tmp_path / "dense")(ids()).logits, one(ids()).logits
        )
    assert evaluate(other.model, ids(1)[0], window=20).perplexity > 1
    assert qcore.quantize(str(tmp_path / "dense"), "int4-g32").ledger.coverage > 0.5  # an ordinary model


@pytest.mark.parametrize(
    ("method", "kind", "share", "changed"),
    [
        ("neurons", "llama", 0.25, {"intermediate_size": 96}),
        ("neurons", "gpt2", 0.25, {"n_inner": 192}),
        ("heads", "llama", 0.5, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}),
        ("heads", "moe", 0.5, {"num_attention_heads": 2, "num_key_value_heads": 1}),
        ("layers", "llama-tied", 0.5, {"num_hidden_layers": 1}),
        ("layers", "gpt2", 0.5, {"n_layer": 1}),
        ("layers", "moe", 0.5, {"num_hidden_layers": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_cut_is_gone_and_the_rest_loads_anywhere(tmp_path, method, kind, share, changed):
    folder = str(tiny.checkpoint(kind, tmp_path / "m"))
    result = prune(folder, method, share, tmp_path / "out", tokens=256)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: config[name] for name in changed} == changed
    again = library.load(str(tmp_path / "out"))
    assert (
        sum(value.numel() for value in again.model.parameters())
        == result["parameters"]
        < result["parameters_before"]
    )
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids()).logits
        torch.testing.assert_close(theirs, again.model(ids()).logits)
        assert again.model.generate(ids(1)[:, :5], max_new_tokens=4, do_sample=False).shape == (1, 9)
    assert qcore.quantize(str(tmp_path / "out"), "int4-g32").ledger.coverage > 0.3


@pytest.mark.parametrize(("method", "share"), [("neurons", 0.5), ("heads", 0.5)])
def test_parts_that_do_nothing_go_first_and_nothing_changes(method, share):
    model = tiny.sharp("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            if method == "neurons":
                layer.mlp.down_proj.weight[:, ::2] = 0
            else:
                layer.self_attn.o_proj.weight[:, :32] = 0  # the first of two groups: two heads of 16
        smaller, _ = structured.cut(model, Cut(method, share), ids(), quiet)
        torch.testing.assert_close(smaller(ids()).logits, model(ids()).logits, rtol=1e-4, atol=1e-4)


def test_a_part_is_what_its_columns_add_to_the_output():
    torch.manual_seed(0)
    x, weight = torch.randn(200, 12) * torch.rand(12), torch.randn(5, 12)
    given = 2 / len(x) * x.T @ x
    added = [(x[:, i : i + 3] @ weight[:, i : i + 3].T).square().sum() for i in range(0, 12, 3)]
    torch.testing.assert_close(structured._parts(weight, given, 3), 2 / len(x) * torch.stack(added))


def test_what_stays_makes_up_for_what_goes_as_least_squares_would():
    torch.manual_seed(0)
    x = torch.randn(400, 12) @ torch.randn(12, 12)  # correlated inputs
    weight, columns = torch.randn(5, 12), torch.tensor([0, 2, 3, 5, 6, 8, 9, 11])
    left = structured._refitted(weight, 2 / len(x) * x.T @ x, columns)
    wanted = x @ weight.T
    error = lambda matrix: float((x[:, columns] @ matrix.T - wanted).square().sum())  # noqa: E731
    best = error(torch.linalg.lstsq(x[:, columns], wanted).solution.T)
    assert best <= error(left) < 1.1 * best < 0.5 * error(weight[:, columns])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [("neurons", 0.8), ("heads", 0.5)])
def test_a_model_that_makes_up_for_what_went_loses_less(learned, words, monkeypatch, method, share):
    model = library.load(str(learned)).model
    tokens = texts.tokenize((words / "train.txt").read_text(), tiny.tokenizer(), limit=2048).view(-1, 64)
    test = texts.tokenize((words / "test.txt").read_text(), tiny.tokenizer(), limit=1024)
    before = evaluate(model, test, window=64).perplexity
    lost = (
        evaluate(structured.cut(model, Cut(method, share), tokens, quiet)[0], test, window=64).perplexity
        - before
    )
    monkeypatch.setattr(structured, "_refitted", lambda weight, given, columns: weight[:, columns])
    plainly = (
        evaluate(structured.cut(model, Cut(method, share), tokens, quiet)[0], test, window=64).perplexity
        - before
    )
    assert lost < 0.8 * plainly > 0


def test_a_layer_that_passes_everything_on_goes_first():
    model = tiny.sharp("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        smaller, record = structured.cut(model, Cut("layers", 0.5), ids(), quiet)
        assert record["kept_layers"] == [1] and record["influence"][0] == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(smaller(ids()).logits, model(ids()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_command_says_what_became_of_the_model(tmp_path, capsys):
    folder = str(tiny.checkpoint("llama", tmp_path / "m"))
    out = str(tmp_path / "out")
    assert (
        main.main(
            [
                "prune",
                folder,
                "--method",
                "layers",
                "--amount",
                "0.5",
                "--tokens",
                "256",
                "--out",
                out,
                "--compare",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "of the weights removed" in said and "before: " in said and "after: " in said
    assert (
        main.main(
            ["prune", folder, "--method", "2:4", "--recipe", "int4-g32", "--tokens", "256", "--out", out]
        )
        == 2
    )
    assert "not empty" in capsys.readouterr().err
    options = ["--recipe", "int4-g32", "--tokens", "256", "--out", out, "--overwrite", "--json", "-"]
    assert main.main(["prune", folder, "--method", "2:4", *options]) == 0
    assert (found := json.loads(capsys.readouterr().out))["sparsity"] == 0.5 and found["break_even"] == 0.25
    assert main.main(["eval", out, "--tokens", "200", "--window", "100"]) == 0
    assert main.main(["bench", out, "--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "1"]) == 0


def test_a_pruned_model_is_not_judged_by_the_text_that_was_read(tmp_path):
    folder, text = str(tiny.checkpoint("llama", tmp_path / "m")), tmp_path / "text.txt"
    text.write_text("It was the best of tokens, it was the worst of tokens. " * 40)
    prune(folder, "wanda", 0.5, tmp_path / "out", calibration=str(text), tokens=512)
    with pytest.raises(InputError, match="must not be evaluated on its calibration text"):
        qcore.evaluate(str(tmp_path / "out"), text, tokens=300)
    assert texts.load_text(text).name == "text.txt"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "wand"}, "Did you mean"),
        ({"amount": 1.0}, "less than 1"),
        ({"method": "2:4", "amount": 0.3}, "two of every four"),
        ({"order": "after"}, "needs a recipe"),
        ({"order": "during", "recipe": "int4"}, "before or after"),
        ({"recipe": "fp32"}, "keeps floating point"),
        ({"recipe": "kmeans4"}, "need not hold a 0"),
        ({"recipe": "auto-4bpw"}, "chooses formats itself"),
        ({"recipe": "rot-int4-g32", "order": "after"}, "rotates the model"),
        ({"method": "neurons", "recipe": "int4"}, "quantize the result"),
        ({"method": "layers", "amount": 0.1}, "none of them"),
        ({"method": "heads", "amount": 0.5, "kind": "gpt2"}, "heads cannot be cut"),
        ({"method": "neurons", "amount": 0.5, "kind": "moe"}, "not of a known form"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, sentence):
    folder = str(tiny.checkpoint(changes.pop("kind", "llama"), tmp_path / "m"))
    recipe = changes.pop("recipe", None)
    asked = {"method": "wanda", "amount": 0.5} | changes
    with pytest.raises(InputError, match=sentence):
        prune(
            folder,
            folder=tmp_path / "out",
            recipe=None if recipe is None else parse(recipe),
            tokens=256,
            **asked,
        )
    assert not (tmp_path / "out").exists()

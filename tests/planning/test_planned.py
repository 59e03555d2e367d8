"""The plan of real (tiny) models: figures that quantizing then finds, memory and accelerators, quality from
runs, bad inputs."""

import json

import pytest
import tiny

import qcore
from qcore import library, models
from qcore.base.errors import InputError
from qcore.planning import hindsight, machines, plan, quality, speed
from qcore.planning.probe import Probe
from qcore.planning.types import RECIPES, PlanRow
from qcore.quantization.convert import quantize
from qcore.recipes import parse

KINDS = list(tiny.CONFIGS)


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: library.outline(tiny.checkpoint(kind, folder / kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_that_quantizing_leaves(checkpoints, kind):
    found = plan(checkpoints[kind], ["int8", "int4-g64-dq", "kmeans4", "int4-g32-head8"], kv=("fp32",))
    for row in found.rows:
        ledger = quantize(tiny.model(kind), parse(row.recipe))
        assert row.stored_bytes == ledger.stored_bytes and row.bits_per_weight == pytest.approx(
            ledger.bits_per_weight
        )
        assert row.sources["stored"] == "counted"
    assert found.parameters == tiny.model(kind).num_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_a_token_are_those_of_the_real_ledger(checkpoints, kind):
    from qcore.measurement.traffic import bytes_a_token

    for name in ("int8", "int4-g32-head8", "bf16"):
        model = tiny.model(kind)
        expected = bytes_a_token(model, quantize(model, parse(name)).rows)
        assert speed.weights_a_token(models.meta_model(checkpoints[kind]), parse(name)) == pytest.approx(
            expected, rel=1e-3
        )


def test_sharded_16_bit_and_already_quantized(checkpoints, tmp_path):
    tiny.model("llama").bfloat16().save_pretrained(tmp_path / "narrow", max_shard_size="60KB")
    tiny.tokenizer().save_pretrained(tmp_path / "narrow")
    narrow, wide = plan(tmp_path / "narrow", ["int8"]), plan(checkpoints["llama"], ["int8"])
    assert narrow.dtypes == ("BF16",) and narrow.checkpoint_bytes == wide.checkpoint_bytes / 2
    assert narrow.rows[0].stored_bytes == wide.rows[0].stored_bytes
    small = qcore.quantize(str(checkpoints["llama"].folder), "int4-g64")
    saved = plan(qcore.save(small, tmp_path / "saved"), ["int8"])
    assert [row.recipe for row in saved.rows] == ["as it is"] * 4
    assert saved.rows[0].stored_bytes == small.ledger.stored_bytes and saved.parameters == wide.parameters


def test_context_users_and_the_caches_format(checkpoints):
    one = plan(checkpoints["llama"], ["int8"], context=100).rows
    many = plan(checkpoints["llama"], ["int8"], context=200, users=3).rows
    assert [row.kv for row in one] == ["fp32", "fp16", "int8", "int4"]
    long = [row.kv_bytes for row in plan(checkpoints["llama"], ["int8"], context=500).rows]
    assert long == sorted(long, reverse=True)
    assert (
        one[0].kv_bytes == 2 * one[1].kv_bytes == 4 * 2 * 64 * 100 and many[0].kv_bytes == 6 * one[0].kv_bytes
    )
    assert sum(one[0].parts.values()) == one[0].run_bytes


def test_memory_and_accelerators(checkpoints):
    tight = plan(checkpoints["llama"], ["fp32", "int8"], memory="10MB")
    assert (
        not any(row.fits for row in tight.rows)
        and tight.recommendation.best is None
        and tight.recommendation.binding == "memory"
    )
    card = plan(checkpoints["llama"], ["int8"], memory="nvidia l4")
    assert (card.memory, card.memory_is) == (24 * 2**30, "on NVIDIA L4") and card.rows[0].fits
    assert card.rows[0].run_bytes == card.rows[0].card_bytes == sum(card.rows[0].parts.values())
    assert all(each["fits"] == ["int8"] for each in card.machines)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("16GB", 16e9),
        ("24 GiB", 24 * 2**30),
        ("512mb", 512e6),
        ("1.5TB", 1.5e12),
        (2 * 10**9, 2e9),
        ("800 MiB", 800 * 2**20),
    ],
)
def test_amounts_of_memory(text, expected):
    assert machines.memory(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "16 GBB", "-4GB", "1", "nan", "1e400GB", "16GB;", "99999TB"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(InputError, match="is not an amount of memory. Write it like 16GB"):
        machines.target(text)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"context": 0}, "context is 0"),
        ({"context": 10_000}, "this model has only 512 positions"),
        ({"users": 0}, "users is 0"),
        ({"users": 1.5}, "users is 1.5"),
        ({"recipes": ["int4-g46x"]}, "Did you mean"),
        ({"recipes": []}, "No recipe was given"),
        ({"kv": ["fp61"]}, "fp16"),
        ({"memory": "much"}, "not an amount of memory"),
        ({"max_kl": -1}, "max-kl is -1"),
        ({"min_tokens_per_second": float("nan")}, "min-tokens-per-second is nan"),
        ({"max_perplexity_ratio": 0.5}, "max-perplexity-ratio is 0.5"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_inputs_get_one_sentence(checkpoints, wrong, words):
    with pytest.raises(InputError, match=words) as raised:
        plan(checkpoints["llama"], **wrong)
    assert "\n" not in str(raised.value)


def run_row(checkpoint, recipe, kl, perplexity, **record):
    text = {"name": "a text", "sha256": "1"}
    about = {
        "digest": checkpoint.digest,
        "text": text,
        "window": 512,
        "stride": 512,
        "tokens_scored": 2048,
        **record,
    }
    return {"recipe": recipe, "status": "ok", "kl_mean": kl, "perplexity": perplexity, "record": about}


def test_quality_is_measured_where_the_model_was_run(checkpoints):
    here = checkpoints["llama"]
    runs = [
        run_row(here, "int8", 0.01, 11.0),
        run_row(here, "fp32", 0.0, 10.0),
        run_row(here, "int8", 0.5, 20.0),
        run_row(checkpoints["gpt2"], "int4-g64", 0.2, 12.0),
    ]
    found = quality.from_runs(here, runs)
    assert set(found) == {("int8", "none"), ("fp32", "none")}
    int8 = found["int8", "none"]
    assert (int8.kl, int8.ratio, int8.source) == (0.01, pytest.approx(1.1), "measured")
    rows = {
        row.recipe: row for row in plan(here, ["int8", "int4-g64", "int4-g96"], runs=runs, kv=("fp32",)).rows
    }
    assert rows["int8"].sources["quality"] == "measured" and "your run on a text" in rows["int8"].notes[0]
    assert rows["int4-g96"].kl is None and "quality" not in rows["int4-g96"].sources


def test_quality_with_a_quantized_cache(checkpoints):
    """Measured where the model was run with this very cache, else what the recipe loses and what the cache
    typically adds."""
    here = checkpoints["llama"]
    kept = {"name": "int4", "bits": 4}
    runs = [
        run_row(here, "int8", 0.01, 11.0),
        run_row(here, "fp32", 0.02, 30.0, kv=kept),
        run_row(here, "fp32", 0.0, 10.0),
    ]
    rows = {(row.recipe, row.kv): row for row in plan(here, ["fp32", "int8", "int4-g96"], runs=runs).rows}
    exact, added, measured = rows["int8", "fp32"], rows["int8", "int4"], rows["fp32", "int4"]
    assert (exact.kl, exact.sources["quality"], exact.perplexity_ratio) == (
        0.01,
        "measured",
        pytest.approx(1.1),
    )
    assert (
        added.kl > rows["int8", "int8"].kl > 0.01
        and added.sources["quality"] == "estimated"
        and "the cache" in added.notes[0]
    )
    assert (measured.kl, measured.sources["quality"], measured.perplexity_ratio) == (0.02, "measured", 3.0)
    assert rows["fp32", "fp32"].kl == 0 and rows["int4-g96", "int4"].kl is None


def test_a_model_whose_cache_cannot_be_quantized_is_planned_without(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=258
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "odd")
    tiny.tokenizer().save_pretrained(tmp_path / "odd")
    assert [row.kv for row in plan(tmp_path / "odd", ["int8"]).rows] == ["fp32", "fp16"]
    with pytest.raises(InputError, match="heads of 12 numbers"):
        plan(tmp_path / "odd", ["int8"], kv=("int8",))


def test_typical_figures_say_where_they_are_from():
    known = [name for name in RECIPES if quality.typical(name)]
    assert {"fp32", "int8", "int4-g32", "int4-g64", "nf4-g64"} <= set(known)
    for name in known:
        found = quality.typical(name)
        assert found.source == ("measured" if name == "fp32" else "estimated") and (
            name == "fp32" or "dithered" in found.about
        )
        assert found.kl >= 0 and found.ratio > 0.9
    assert quality.typical("int4-g96") is None
    assert quality.typical("int8").kl < quality.typical("int4-g32").kl < quality.typical("int4-g64").kl


def test_a_plan_is_json(checkpoints):
    assert json.loads(json.dumps(plan(checkpoints["llama"]).to_dict()))["recommendation"]["best"]["recipe"]


def test_predictions_from_a_probe_by_hand(checkpoints):
    model = models.meta_model(checkpoints["llama"])
    probe = Probe(
        "int8",
        layers=2,
        depth=1,
        head_s=0.01,
        block_s=0.02,
        prefill_block_s=0.1,
        prompt_tokens=100,
        context=50,
        bandwidth=1e6,
        native=True,
    )
    found = speed.predict(probe, model, parse("int8"), 50)
    assert found.decode_tok_s == pytest.approx(1 / 0.05) and found.prefill_tok_s == pytest.approx(100 / 0.21)
    held = 4 * 2 * 64 * 50
    assert found.limit_tok_s == pytest.approx(1e6 / (speed.weights_a_token(model, parse("int8")) + held))
    assert speed.predict(probe, model, parse("int8"), 100).decode_tok_s == pytest.approx(
        1 / (0.05 + held / 0.5e6)
    )
    assert speed.predict(probe, model, parse("int8"), 50, 200).prefill_tok_s == pytest.approx(200 / 0.41)


def row(recipe, nbytes, decode):
    return PlanRow(
        recipe=recipe,
        kv="fp32",
        stored_bytes=nbytes,
        bits_per_weight=None,
        kv_bytes=0,
        run_bytes=0,
        load_bytes=0,
        stream_bytes=None,
        card_bytes=0,
        parts={},
        fits=True,
        decode_tok_s=decode,
    )


def test_smaller_but_slower_is_warned_of():
    rows = [
        row("fp32", 400, 10.0),
        row("int8", 100, 40.0),
        row("bnb-nf4", 60, 5.0),
        row("int4", 50, 39.0),
        row("new", 10, None),
    ]
    assert speed.smaller_but_slower(rows) == [
        "bnb-nf4 is smaller than fp32, but slower on this machine: 5 against 10 tok/s."
    ]
    assert "slower on this machine: 5 against 40" in speed.smaller_but_slower(rows[1:3])[0]


def test_error_bands():
    rows = [
        {
            "stored_bytes": 100,
            "decode_tok_s": 10.0,
            "record": {"predicted": {"stored_bytes": 100, "decode_tok_s": 11.0}},
        },
        {
            "stored_bytes": 100,
            "decode_tok_s": 10.0,
            "record": {"predicted": {"stored_bytes": 102, "decode_tok_s": 7.0}},
        },
        {"stored_bytes": 100, "decode_tok_s": 10.0, "record": {}},
    ]
    size, decode = hindsight.bands(rows)
    assert (size.figure, size.runs, size.within) == ("stored_bytes", 2, 1) and size.median == pytest.approx(
        0.01
    )
    assert (decode.within, decode.bar) == (1, 0.2) and decode.largest == pytest.approx(-0.3)
    assert hindsight.bands([]) == []


@pytest.mark.parametrize(
    "record",
    [
        {"throughput": {"others_share": 0.5}, "predicted": {}},
        {"throughput": {"others_share": 0.0}, "predicted": {"disturbed": True}},
    ],
    ids=["measured", "probed"],
)
def test_a_speed_beside_other_work_is_not_held_against_the_prediction(record):
    record["predicted"] |= {"stored_bytes": 100, "decode_tok_s": 20.0}
    row = {"stored_bytes": 100, "decode_tok_s": 10.0, "record": record}
    assert hindsight.of_row(row) == {"stored_bytes": 0.0}

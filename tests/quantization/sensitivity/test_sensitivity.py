"""Sensitivities against literal computations on a tiny model: whole forward passes with one layer changed."""

import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError
from qcore.formats.uniform import Uniform
from qcore.layers.select import select
from qcore.quantization import methods
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.tail import Tail
from qcore.quantization.methods import gptq
from qcore.quantization.sensitivity.gradients import states
from qcore.quantization.sensitivity.measured import measure
from qcore.quantization.sensitivity.proxy import predict, split
from qcore.quantization.sensitivity.rounding import expected, rounded
from qcore.quantization.sensitivity.store import TableStore, tables
from qcore.quantization.sensitivity.table import Layer, Sensitivities, spearman
from qcore.recipes import parse

FORMATS = [Uniform(3, 32, False), Uniform(4, 32, False), Uniform(8, None, True)]
KINDS = ["llama", "llama-tied", "gpt2", "moe"]


def text(rows: int = 3, columns: int = 40) -> Calibration:
    ids = torch.randint(0, 256, (rows, columns), generator=torch.Generator().manual_seed(0))
    return Calibration("random bytes", "0" * 64, ids)


def quiet(done, total, words):
    pass


def targets_of(model):
    return list(select(model, parse("int4-g32")).targets)


@torch.no_grad()
def quantized_in_place(model, target, format):
    """Round one parameter of the model to nearest, expert by expert; return the original."""
    module = model.get_submodule(target.module)
    original = getattr(module, target.parameter)
    transposed = target.kind == "conv1d" or (target.kind == "experts" and module.is_transposed)
    weight = original.transpose(-1, -2) if transposed else original
    matrices = weight.unbind(0) if target.kind == "experts" else [weight]
    found = torch.stack(
        [methods.quantize(matrix.contiguous(), format, "rtn").dequantize() for matrix in matrices]
    )
    found = found if target.kind == "experts" else found[0]
    setattr(
        module,
        target.parameter,
        torch.nn.Parameter(
            found.transpose(-1, -2).contiguous() if transposed else found, requires_grad=False
        ),
    )
    return original


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_tail_gives_the_models_own_logits(kind):
    from qcore.quantization.calibration.blocks import Blocks

    model, ids = tiny.model(kind), text().ids
    blocks = Blocks(model)
    last = states(blocks, ids, lambda position: None)[-1]
    tail = Tail(blocks)
    for window, state in zip(ids, last, strict=True):
        torch.testing.assert_close(
            tail(window, state.hidden), model(window[None]).logits[0], rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(model(ids).logits, tiny.model(kind)(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_measured_divergence_is_that_of_whole_forward_passes(kind):
    model, calibration = tiny.sharp(kind), text()
    ids = calibration.ids[:2, :24]
    targets = targets_of(model)
    before = model(ids).logits.double().log_softmax(-1)
    found = {}
    for part in measure(model, targets, FORMATS, "rtn", calibration, ids, quiet):
        found |= part
    assert set(found) == {target.name for target in targets}
    for target in targets:
        for format, value in zip(FORMATS, found[target.name], strict=True):
            original = quantized_in_place(model, target, format)
            after = model(ids).logits.double().log_softmax(-1)
            setattr(model.get_submodule(target.module), target.parameter, original)
            literal = float((before.exp() * (before - after)).sum(-1).mean())
            assert value == pytest.approx(literal, rel=2e-3, abs=1e-6)
    assert torch.equal(model(ids).logits, tiny.sharp(kind)(ids).logits), "the model is left as it was"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_predicted_loss_is_half_the_mean_square_of_gradient_times_error(kind):
    model, calibration = tiny.sharp(kind), text()
    targets = targets_of(model)
    rows = {
        row.name: row
        for row in predict(model, targets, FORMATS, "rtn", calibration, quiet, samples=1, seed=5)
    }
    generator = torch.Generator().manual_seed(5)
    sums = {target.name: torch.zeros(len(FORMATS), dtype=torch.float64) for target in targets}
    energy = {target.name: torch.zeros(len(FORMATS) + 1, dtype=torch.float64) for target in targets}
    for window in calibration.ids:
        given, made = {}, {}
        hooks = []
        for target in targets:

            def note(module, arguments, output, name=target.name, given=given, made=made):
                given[name], made[name] = arguments[0].detach()[0], output
                output.retain_grad()

            hooks.append(model.get_submodule(target.module).register_forward_hook(note))
        log_p = model(window[None]).logits[0].log_softmax(-1)
        drawn = torch.multinomial(log_p.detach().exp(), 1, replacement=True, generator=generator)
        log_p.gather(1, drawn).sum().backward()
        for hook in hooks:
            hook.remove()
        for target in targets:
            weight = getattr(model.get_submodule(target.module), target.parameter).detach()
            weight = weight.T.contiguous() if target.kind == "conv1d" else weight
            energy[target.name][-1] += (given[target.name] @ weight.T).square().sum()
            for k, format in enumerate(FORMATS):
                change = methods.quantize(weight, format, "rtn").dequantize() - weight
                error = given[target.name] @ change.T
                sums[target.name][k] += (
                    (made[target.name].grad[0] * error).sum(-1).square().sum() / 2 / calibration.ids.numel()
                )
                energy[target.name][k] += error.square().sum()
    for target in targets:
        torch.testing.assert_close(
            torch.tensor(rows[target.name].loss, dtype=torch.float64),
            sums[target.name],
            rtol=2e-3,
            atol=1e-10,
        )
        expected = energy[target.name][:-1] / energy[target.name][-1]
        torch.testing.assert_close(
            torch.tensor(rows[target.name].output_error, dtype=torch.float64), expected, rtol=2e-3, atol=1e-10
        )


@pytest.mark.parametrize(
    "kind, least", [("llama", 0.85), ("moe", 0.6)]
)  # routers switch experts, which gradients cannot predict
def test_the_prediction_has_the_size_of_what_is_measured(kind, least):
    model, calibration = tiny.sharp(kind), text(rows=8)
    targets = targets_of(model)
    formats = [Uniform(5, 32, False), Uniform(6, 32, False)]
    rows = predict(model, targets, formats, "rtn", calibration, quiet, samples=8)
    found = {}
    for part in measure(model, targets, formats, "rtn", calibration, calibration.ids, quiet):
        found |= part
    table = Sensitivities(tuple(formats), tuple(rows)).with_kl(found)
    assert table.measured and table.correlations()["loss"]["all"] > least
    predicted, measured = sum(row.loss[0] for row in table.layers), sum(row.kl[0] for row in table.layers)
    assert kind == "moe" or 1 / 2 < predicted / measured < 2


def test_rows_say_what_and_where():
    model = tiny.model("llama")
    rows = predict(model, targets_of(model), FORMATS, "rtn", text(), quiet)
    assert [row.block for row in rows] == [0] * 7 + [1] * 7
    assert rows[0].kind == "self_attn.q_proj" and rows[0].shape == (64, 64) and rows[0].weights == 4096
    for row in rows:
        weight = model.get_parameter(row.name)
        assert row.nbytes == tuple(methods.quantize(weight, format, "rtn").nbytes for format in FORMATS)


def test_expected_gptq_errors_are_those_of_gptq():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(96, 96, generator=generator) * torch.rand(96, generator=generator)
    inputs = torch.randn(4000, 96, generator=generator) @ mix
    weight = torch.randn(128, 96, generator=generator)
    hessian = 2 / len(inputs) * inputs.T @ inputs
    estimated, plain = expected("gptq", hessian), expected("rtn", hessian)
    for format in (Uniform(3, 32, False), Uniform(4, 32, False), Uniform(8, None, True)):
        literal = gptq.quantize([weight], format, hessian, rounds=0)[0].tensor.dequantize()
        assert torch.equal(rounded("gptq", [weight], format, hessian)[0], literal)
        truth, guess, rounding = (
            gptq.descent.objective(weight.T, quantized.T, hessian)
            for quantized in (literal, estimated([weight], format)[0], plain([weight], format)[0])
        )
        assert guess == pytest.approx(truth, rel=0.25) and truth < 0.5 * rounding


def test_a_stopped_measurement_goes_on_after_its_last_block(tmp_path, monkeypatch):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path))
    model, calibration = tiny.model("llama"), text()
    targets = targets_of(model)
    store = TableStore({"model": "a"})
    walk = measure(model, targets, FORMATS, "rtn", calibration, calibration.ids, quiet)
    store.write_part(0, next(walk))
    walk.close()
    kept = TableStore({"model": "a"}).parts()
    assert len(kept) == 7
    (rest,) = measure(model, targets, FORMATS, "rtn", calibration, calibration.ids, quiet, known=set(kept))
    assert set(kept) | set(rest) == {target.name for target in targets}


def test_tables_survive_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path))
    model = tiny.model("llama")
    table = Sensitivities(
        tuple(FORMATS),
        tuple(predict(model, targets_of(model), FORMATS, "rtn", text(), quiet)),
        {"model": "tiny"},
    )
    store = TableStore({"model": "tiny"})
    assert store.read() is None and tables() == []
    store.write(table)
    assert store.read() == table and tables() == [(store.key, table)]
    (store.path / "table.json").write_text('{"version": 0}')
    assert store.read() is None and tables() == []


@pytest.mark.parametrize(
    "damage",
    [{"version": 0}, {"layers": [{}]}, {"formats": [{"type": "odd"}]}],
    ids=["version", "layer", "format"],
)
def test_a_damaged_table_is_one_sentence(damage):
    record = Sensitivities(
        tuple(FORMATS), (Layer("a", 0, "a", (2, 2), 4, (1, 1, 1), (1.0,) * 3, (1.0,) * 3),)
    ).to_dict()
    assert Sensitivities.from_dict(record).labels == ("int3-g32", "int4-g32", "int8-sym")
    with pytest.raises(InputError, match="cannot be read"):
        Sensitivities.from_dict(record | damage)


def test_methods_that_cannot_be_looked_at_are_refused():
    model = tiny.model("llama")
    with pytest.raises(InputError, match="kmeans-hessian cannot choose formats"):
        predict(model, targets_of(model), FORMATS, "kmeans-hessian", text(), quiet)
    with pytest.raises(InputError, match="nothing to choose"):
        predict(model, [], FORMATS, "rtn", text(), quiet)


def test_windows_are_spread_over_the_text():
    whole = text(rows=16, columns=10)
    assert torch.equal(whole.part(40).ids, whole.ids[[0, 4, 8, 12]])
    assert torch.equal(whole.part(1).ids, whole.ids[:1]) and torch.equal(whole.part(10**6).ids, whole.ids)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_spearman_is_pearsons_correlation_of_ranks(pairs):
    def ranks(values):
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    a, b = (torch.tensor(ranks(side), dtype=torch.float64) for side in zip(*pairs, strict=True))
    found = spearman([a for a, _ in pairs], [b for _, b in pairs])
    if a.std() == 0 or b.std() == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]), abs=1e-9)


def test_methods_that_see_inputs_choose_by_other_windows_than_the_loss_is_for():
    whole = text(rows=16, columns=10)
    assert torch.equal(split(whole, "rtn", 40)[0].ids, whole.part(40).ids) and split(whole, "rtn")[1] is None
    loss, given = split(whole, "gptq", 40)
    assert torch.equal(loss.ids, whole.ids[[0, 4, 8, 12]])
    assert torch.equal(given.ids, whole.ids[[i for i in range(16) if i % 4]])
    loss, given = split(text(rows=1), "gptq")
    assert torch.equal(loss.ids, given.ids)
    model = tiny.model("llama")
    seen, unseen = (
        sum(
            row.loss[0]
            for row in predict(model, targets_of(model), FORMATS[:1], "gptq", text(rows=1), quiet, other)
        )
        for other in (text(rows=1), Calibration("others", "1" * 64, text(rows=4).ids[1:2]))
    )
    assert seen < unseen, "on the very tokens that it was fitted to, GPTQ looks better"

"""The playground's process: its output, its cancellation, and its end; it never outlives or blocks its
client."""

import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import psutil
import pytest
import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from qcore import library, planning
from qcore.base.errors import InputError, RunError, TooLargeError
from qcore.evaluation.generation import generate_text
from qcore.jobs import answers, wire
from qcore.jobs import resident as resident_module
from qcore.jobs.resident import Event, Resident, WorkerProcess
from qcore.jobs.resident_worker import ModelCache, Worker
from qcore.recipes import parse

pytestmark = pytest.mark.slow

RECIPES = ("fp32", "fp16")  # neither needs a compiled kernel, so a test waits for nothing but torch
PATIENCE = 120  # seconds after which a hang is a failure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("resident") / "model")


@pytest.fixture(scope="module")
def resident(folder):
    with Resident(str(folder), RECIPES, threads=1) as client:
        yield client


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def kinds(events: list[Event]) -> list[str]:
    """The kinds in order, runs of the same kind once."""
    return [
        event.kind for index, event in enumerate(events) if index == 0 or events[index - 1].kind != event.kind
    ]


def test_each_recipe_writes_what_it_writes_alone(resident, folder):
    events = [
        event for event in resident.generate("Hello", 12, temperature=1.5, seed=3) if event.kind != "loading"
    ]
    loaded = library.load(str(folder))
    alone = generate_text(loaded.model, loaded.tokenizer, "Hello", 12, temperature=1.5, seed=3)
    for recipe in RECIPES:
        own = [event for event in events if event.recipe == recipe]
        assert kinds(own) == ["start", "text", "done"]
        assert "".join(event.text for event in own if event.kind == "text") == own[-1].result["text"]
        assert own[-1].result["prompt_tokens"] == 5
    first, second = (event.result for event in events if event.kind == "done")
    assert (first["tokens"], first["text"], first["first_divergence"]) == (alone.tokens, alone.text, None)
    index = second["first_divergence"]
    same = os.path.commonprefix([first["text"], second["text"]])
    assert second["same_characters"] == len(same)
    assert index is None or (
        first["tokens"][:index] == second["tokens"][:index]
        and first["tokens"][index] != second["tokens"][index]
    )


def test_models_stay_loaded_and_recipes_can_be_chosen(resident):
    list(resident.generate("Hello", 2))
    again = list(resident.generate("Hello", 2, recipes=["fp16"]))
    assert {event.recipe for event in again} == {"fp16"} and kinds(again) == ["start", "text", "done"]


def test_notes_about_the_prompt_come_with_the_result(resident):
    *_, last = resident.generate("x" * 600, 10, recipes=["fp32"])
    assert "only its last 502 were read" in last.result["notes"][0]


def test_odd_characters_pass_the_pipe_unharmed(resident):
    *_, last = resident.generate("\u2028\n\ud800\0\u202e😀", 2, recipes=["fp32"])
    assert last.kind == "done" and "lone surrogates" in last.result["notes"][0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": -1}, "new tokens is -1"),
        ({"max_new_tokens": 10**9}, "between 1 and 2048"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 7.0}, "top_p is 7"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_a_bad_request_is_an_input_error(resident, options, words):
    with pytest.raises(InputError, match=words):
        list(resident.generate("Hi", **options))


def test_a_recipe_that_fails_leaves_the_others(folder):
    bad = parse("int8").with_modules(skip=("no_such_module",))
    with Resident(str(folder), [bad, "fp32"], threads=1) as client:
        events = [event for event in client.generate("Hi", 2) if event.kind != "loading"]
    assert (events[0].kind, events[0].recipe) == ("error", "int8") and "no_such_module" in events[0].text
    assert (events[-1].kind, events[-1].recipe) == ("done", "fp32")


def test_an_unknown_model_is_an_input_error(tmp_path):
    with (
        Resident(str(tmp_path / "missing"), ["fp32"]) as client,
        pytest.raises(InputError, match="is neither a folder or file here"),
    ):
        list(client.generate("Hi", 2))


def test_no_recipes_is_an_input_error(folder):
    with pytest.raises(InputError, match="at least one recipe"):
        Resident(str(folder), [])


@pytest.mark.row("38")
def test_closing_the_iterator_cancels_the_rest(resident):
    events = resident.generate("Hi", 400, temperature=5.0)
    while next(events).kind != "text":
        pass
    pid = resident.process.pid
    events.close()
    *_, last = resident.generate("Hi", 1, recipes=["fp32"])
    assert last.kind == "done" and resident.process.pid == pid


def test_cancel_ends_every_iterator_early(resident):
    ends = []

    def write() -> None:
        ends.append([event for event in resident.generate("Hi", 450, temperature=5.0, seed=len(ends))][-1])

    threads = [threading.Thread(target=write) for _ in range(2)]
    events = resident.generate("Hi", 450, temperature=5.0)
    while next(events).kind != "text":
        pass
    for thread in threads:
        thread.start()
    until(lambda: len(resident.process._child._inboxes) == 3)
    time.sleep(0.2)
    resident.process.cancel()
    last = list(events)[-1]
    for thread in threads:
        thread.join(PATIENCE)
    assert last.kind == "text" or last.result["reason"] == "stopped"
    assert [event.kind for event in ends].count(
        "queued"
    ) == 2  # they waited, and were cancelled before their turn


def test_the_thread_that_asked_first_may_end(folder):
    client, first = Resident(str(folder), ["fp32"], threads=1), []
    thread = threading.Thread(target=lambda: first.extend(client.generate("Hi", 1)))
    thread.start()
    thread.join(PATIENCE)
    pid = client.process.pid
    assert (
        list(client.generate("Hi", 1))[-1].result["tokens"] == first[-1].result["tokens"]
        and client.process.pid == pid
    )
    client.process.close()
    assert gone(pid) and client.process.pid is None


@pytest.mark.row("34")
def test_a_killed_process_is_reported_and_the_next_request_starts_another(folder):
    with Resident(str(folder), ["fp32"], threads=1) as client:
        events = client.generate("Hi", 400, temperature=5.0)
        next(events)
        pid = client.process.pid
        os.kill(pid, 9)
        with pytest.raises(RunError, match="signal 9, most likely because memory ran out"):
            list(events)
        *_, last = client.generate("Hi", 1)
        assert (last.kind, last.text) == ("done", "") and client.process.pid != pid


HALF_A_LINE = """
import sys
sys.stdin.readline()
sys.stdout.write('{"id": 1, "event": "te')
"""


def test_a_process_that_dies_in_the_middle_of_a_line_is_reported(monkeypatch):
    """The reader's thread ended with an error, and the request waited for ever."""
    client, seen = Resident("model", ["fp32"]), []
    monkeypatch.setattr(resident_module, "COMMAND", [sys.executable, "-c", HALF_A_LINE])

    def write():
        with pytest.raises(RunError, match="ended by itself"):
            list(client.generate("Hi", 1))
        seen.append("reported")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(PATIENCE / 4)
    assert seen == ["reported"] and client.process.pid is None


PARENT = """
import os, sys
from qcore.jobs.resident import Resident
client = Resident(sys.argv[1], ["fp32"], threads=1)
next(client.generate("Hi", 400, temperature=5.0))
print(client.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_it_ends_with_its_parent(folder):
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, str(folder)], capture_output=True, text=True, timeout=PATIENCE
    )
    pid = int(parent.stdout)
    until(lambda: gone(pid))


def test_it_ends_when_its_client_is_forgotten(folder):
    client = Resident(str(folder), ["fp32"], threads=1)
    list(client.generate("Hi", 1))
    pid = client.process.pid
    del client
    gc.collect()
    until(lambda: gone(pid))


def test_it_ends_when_idle():
    worker = Worker(io.StringIO(), idle_seconds=0.01)
    worker.serve()  # returns


def test_it_does_not_end_during_a_call(monkeypatch):
    end, channel = threading.Event(), io.StringIO()
    monkeypatch.setitem(answers.ANSWERS, "waits", lambda: end.wait(PATIENCE))
    worker = Worker(channel, idle_seconds=0.05)
    worker.take(json.dumps({"op": "call", "id": 1, "name": "waits", "arguments": wire.pack(((), {}))}))
    serving = threading.Thread(target=worker.serve, daemon=True)
    serving.start()
    serving.join(0.3)
    assert serving.is_alive() and not channel.getvalue()
    end.set()
    serving.join(PATIENCE)
    first, last = map(json.loads, channel.getvalue().splitlines())
    assert (first["event"], wire.unpack(first["text"]), last["event"]) == ("value", True, "end")


def test_a_request_without_end_ends_the_process_of_a_public_server(monkeypatch):
    end, ended, channel = threading.Event(), [], io.StringIO()
    monkeypatch.setitem(answers.ANSWERS, "waits", lambda: end.wait(PATIENCE))
    worker = Worker(channel, idle_seconds=PATIENCE)
    worker.take(json.dumps({"op": "call", "id": 1, "name": "waits", "arguments": wire.pack(((), {}))}))
    watching = threading.Thread(target=worker.watch, args=(0.2, ended.append), daemon=True)
    watching.start()
    watching.join(PATIENCE)
    end.set()
    assert ended == [resident_module.OVERTIME]


def test_downloads_do_not_keep_other_calls_waiting(monkeypatch):
    end, channel = threading.Event(), io.StringIO()
    for name in ("resolve", "outline"):
        monkeypatch.setitem(answers.ANSWERS, name, lambda: end.wait(PATIENCE))
    monkeypatch.setitem(answers.ANSWERS, "engines_here", lambda: "answered")
    worker = Worker(channel, idle_seconds=PATIENCE)
    for number, name in enumerate(["resolve", "outline"] * 3 + ["engines_here"]):
        call = {"op": "call", "id": number, "name": name, "arguments": wire.pack(((), {}))}
        worker.take(json.dumps(call))
    until(lambda: channel.getvalue().count("\n") == 2)
    end.set()
    assert [json.loads(line)["id"] for line in channel.getvalue().splitlines()[:2]] == [6, 6]


def test_a_short_request_does_not():
    ended: list[int] = []
    worker = Worker(io.StringIO(), idle_seconds=PATIENCE)
    threading.Thread(target=worker.watch, args=(0.1, ended.append), daemon=True).start()
    for _ in range(8):
        worker._answer({"id": 1}, lambda request: time.sleep(0.05))
    assert not ended


@pytest.mark.row("46")
def test_requests_that_take_all_memory_end_with_a_sentence(monkeypatch):
    """Otherwise the system ends any process, such as the server."""
    code = (
        "import sys; from qcore.jobs import resident_worker; from qcore.measurement import memory; "
        "memory.is_exhausting = lambda total: True; resident_worker.main(sys.argv[1:])"
    )
    monkeypatch.setattr(resident_module, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    with WorkerProcess() as process, pytest.raises(RunError, match="took nearly all memory of this server"):
        process.call(answers.resolve, "x", None)


def test_a_call_is_answered_while_a_text_is_generated(resident, folder):
    events = resident.generate("Hi", 400, temperature=5.0)
    while next(events).kind != "text":
        pass
    assert resident.process.call(answers.resolve, str(folder), None) == library.resolve(str(folder))
    assert next(events).kind == "text"
    events.close()


def test_a_refused_call_raises_the_same_error(resident, tmp_path):
    with pytest.raises(InputError, match="is neither a folder or file here"):
        resident.process.call(answers.resolve, str(tmp_path / "missing"), None)


def test_a_call_reports_its_steps_and_ends_when_one_is_refused(resident, folder):
    checkpoint, steps = library.resolve(str(folder)), []

    def refuse(done, total, words):
        steps.append((done, total, words))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        resident.process.call(answers.layer_errors, checkpoint, parse("int8"), progress=refuse)
    assert steps == [(0, 14, "model.layers.0.self_attn.q_proj.weight")]
    until(lambda: not resident.process._child._inboxes)


RETIRES = """
import sys
sys.stdin.readline()
sys.exit(75)
"""


def test_a_request_that_meets_an_idle_end_is_sent_again(folder, monkeypatch):
    with WorkerProcess() as process:
        with monkeypatch.context() as patch:
            patch.setattr(resident_module, "COMMAND", [sys.executable, "-c", RETIRES])
            process._running()
        assert process.call(answers.resolve, str(folder), None).digest


def request(**changes) -> dict:
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    return {
        "id": 1,
        "op": "generate",
        "recipes": [],
        "max_new_tokens": 1,
        "sampling": sampling,
        "chat": False,
        "prompt": "",
        **changes,
    }


def test_an_unexpected_failure_is_a_sentence(monkeypatch):
    worker = Worker(io.StringIO(), 1)
    monkeypatch.setattr(library, "resolve", lambda *arguments, **options: 1 / 0)
    event, details = worker._answer(request(model="m", revision=None), worker._generate)
    assert (event, details["type"]) == ("refused", "RunError") and "ZeroDivisionError" in details["text"]


def checkpoint_and_report(folder):
    return library.resolve(str(folder)), lambda done, total, text: None


@pytest.mark.row("38")
def test_the_least_recently_used_model_makes_room(folder, monkeypatch):
    checkpoint, report = checkpoint_and_report(folder)
    cache, room = ModelCache(), 2

    def estimate(*arguments, **options):
        need = 0 if len(cache._models) < room else 2
        return SimpleNamespace(peak_load_bytes=need, peak_run_bytes=0)

    monkeypatch.setattr(planning, "estimate", estimate)
    monkeypatch.setattr(planning, "budget", lambda: 1)
    monkeypatch.setattr(planning, "check_fits", lambda *arguments, **options: None)
    first, second = (
        weakref.ref(cache.get(checkpoint, parse(name), report).model) for name in ("fp32", "fp16")
    )
    assert cache.get(checkpoint, parse("fp32"), report).model is first()
    cache.get(checkpoint, parse("bf16"), report)
    assert second() is None and first() is not None and len(cache._models) == 2


def test_a_memory_limit_counts_what_is_held(folder, monkeypatch):
    checkpoint, report = checkpoint_and_report(folder)
    cache = ModelCache()
    cache.get(checkpoint, parse("fp32"), report)
    need = planning.estimate(checkpoint, parse("fp16"), tokens=2048, window=1)
    most = max(need.peak_load_bytes, need.peak_run_bytes)
    held = 4 * checkpoint.parameters
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", str(most + held))
    cache.get(checkpoint, parse("fp16"), report)
    assert len(cache._models) == 2
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", str(most + held // 4))
    cache.get(checkpoint, parse("bf16"), report)
    assert len(cache._models) == 1
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "1000")
    with pytest.raises(TooLargeError):
        cache.get(checkpoint, parse("int8"), report)
    assert len(cache._models) == 0


def test_another_checkpoint_clears_the_cache(folder, tmp_path):
    checkpoint, report = checkpoint_and_report(folder)
    cache = ModelCache()
    old = weakref.ref(cache.get(checkpoint, parse("fp32"), report).model)
    cache.get(library.resolve(str(tiny.checkpoint("gpt2", tmp_path))), parse("fp32"), report)
    assert old() is None and len(cache._models) == 1


@pytest.mark.row("44")
def test_a_copy_with_another_tokenizer_is_another_model(folder, tmp_path):
    """The digest is equal, and before, the copy's tokenizer wrote the texts of the original."""
    copy, report = tmp_path / "copy", lambda done, total, text: None
    shutil.copytree(folder, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    prepend = {"type": "Replace", "pattern": {"String": "H"}, "content": "PWNED"}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], prepend]}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    evil, honest = library.resolve(str(copy)), library.resolve(str(folder))
    assert evil.digest == honest.digest
    cache = ModelCache()

    def text(checkpoint):
        loaded = cache.get(checkpoint, parse("fp32"), report)
        assert loaded.checkpoint.folder == checkpoint.folder
        return loaded.tokenizer.decode([39])  # the byte H

    assert (text(evil), text(honest), text(evil)) == ("PWNED", "H", "PWNED")
    loaded = cache.get(evil, parse("fp32"), report)
    assert cache.get(evil, parse("fp32"), report) is loaded
    shutil.copyfile(folder / "tokenizer.json", copy / "tokenizer.json")
    assert text(evil) == "H", "a change in the folder is seen, too"


@pytest.mark.row("38")
def test_memory_is_flat_over_ten_rounds_of_two_models(tmp_path):
    """Each model has 17 MB; one that stayed would show."""
    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=258, num_attention_heads=4, num_key_value_heads=4, **shape)
    folders = []
    for name in ("one", "other"):
        model = LlamaForCausalLM(config)
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    del model
    cache, seen = ModelCache(), []
    for _ in range(10):
        for folder in folders:
            checkpoint, report = checkpoint_and_report(folder)
            loaded = cache.get(checkpoint, parse("bf16"), report)
            generate_text(loaded.model, loaded.tokenizer, "Hi", 2)
        del loaded
        seen.append(psutil.Process().memory_info().rss)
    assert max(seen[4:]) - seen[3] < 10e6, [round(each / 1e6) for each in seen]


@pytest.mark.row("38")
def test_another_model_is_asked_for_while_one_writes(folder, tmp_path):
    other = tiny.checkpoint("gpt2", tmp_path / "other")
    with Resident(str(folder), ["fp32"], threads=1) as client:
        events = client.generate("Hi", 400, temperature=5.0)
        while next(events).kind != "text":
            pass
        client.model = str(other)
        second = client.generate("Hi", 2)
        assert next(second).kind == "queued"
        events.close()  # cancelled: the first gives way
        assert [event.kind for event in second][-1] == "done"
        client.model = str(folder)
        assert list(client.generate("Hi", 1))[-1].kind == "done"


def test_a_process_whose_lock_is_never_let_go_is_ended_by_the_system():
    """A decoder of a stranger's tokenizer may take hours, with Python's lock held: no thread can end it."""
    program = (
        "import ctypes, io, threading, time\n"
        "from qcore.jobs.resident_worker import Worker\n"
        "watch = Worker(io.StringIO(), 60.0).watch\n"
        "threading.Thread(target=watch, args=(0.4,), kwargs={'stalled': 1}, daemon=True).start()\n"
        "time.sleep(1.5)\n"  # the alarm is put off again and again
        "print('alive', flush=True)\n"
        "ctypes.PyDLL(None).sleep(100)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (-signal.SIGALRM, "alive\n")

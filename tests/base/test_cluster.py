"""A Ray cluster of two nodes on this machine: the same rows and the same bytes as without it, though a worker
is killed in the middle."""

import filecmp
import json
import os
import signal
import threading
import time

import psutil
import pytest
import tiny
import torch

from qcore import library, recipes
from qcore.base.executor import Executor
from qcore.jobs import jobs
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder
from qcore.results.verdicts import with_verdicts
from qcore.streaming import quantizing
from qcore.verbs import compare

pytestmark = pytest.mark.ray
SHARD = 100_000  # bytes, so that a tiny model takes several
MEMORY = 80_000_000  # bytes of Ray's object store on each node, unused here
FIGURES = (
    "recipe",
    "status",
    "stored_bytes",
    "bits_per_weight",
    "coverage",
    "perplexity",
    "kl_mean",
    "top1_agreement",
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QCORE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY},
        )
        try:
            cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            yield Executor("ray", cluster.address)
        finally:
            cluster.shutdown()


@pytest.fixture(autouse=True)
def same_threads():
    """A run's number of threads is set for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def events(path):
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )


def kill_the_first_worker(path, kind):
    """SIGKILL for the Ray worker that reports into `path`, when it has reported an event of this kind."""
    wait_for(lambda: any(event["event"] == kind for event in events(path)))
    os.kill(next(event["pid"] for event in events(path) if event["event"] == "task"), signal.SIGKILL)


def test_rows_are_those_of_a_local_run_though_a_worker_is_killed(engine, tmp_path):
    model, text = tiny.checkpoint("llama", tmp_path / "llama"), tmp_path / "text.txt"
    text.write_text("It was the best of tokens, it was the worst of tokens. " * 60, encoding="utf-8")
    spec = RunSpec(
        str(model),
        "fp32,int8,int4-g32",
        text=str(text),
        tokens=3000,
        window=64,
        prompt_tokens=8,
        new_tokens=3,
        generate=False,
        threads=1,
    )
    run_id = jobs.submit(spec, engine)
    kill_the_first_worker(RunFolder(run_id).path / "events-1.jsonl", "phase")
    last = list(jobs.follow(run_id))[-1]
    assert (last.state, last.error) == ("done", None), last.log_tail
    tried = [
        event["pid"]
        for event in events(RunFolder(run_id).path / "events-1.jsonl")
        if event["event"] == "task"
    ]
    assert len(tried) == len(set(tried)) == 2
    (tmp_path / "local").mkdir()
    spread, local = (
        jobs.rows(run_id),
        with_verdicts([compare.run_recipe(spec, each, tmp_path / "local", print) for each in spec.recipes]),
    )
    assert [[row[name] for name in FIGURES] for row in spread] == [
        [row[name] for name in FIGURES] for row in local
    ]
    assert [row["verdict"]["outcome"] for row in spread[1:]] == [
        row["verdict"]["outcome"] for row in local[1:]
    ]
    assert [row["recipe"] for row in jobs.Store().rows(run_id)] == ["fp32", "int8", "int4-g32"]


def test_shards_are_those_of_a_local_run_though_a_worker_is_killed(engine, tmp_path):
    checkpoint, recipe = (
        library.resolve(tiny.checkpoint("llama", tmp_path / "model")),
        recipes.parse("int4-g64"),
    )
    quantizing.quantize(checkpoint, recipe, tmp_path / "local", shard_bytes=SHARD)
    killed = []

    def kill():
        (path,) = wait_for(lambda: list(tmp_path.glob(".out.streaming-*/spread/model-00001-*.tries")))
        kill_the_first_worker(path, "task")
        killed.append(path)

    helper = threading.Thread(target=kill)
    helper.start()
    reported = []
    quantizing.quantize(
        checkpoint,
        recipe,
        tmp_path / "out",
        shard_bytes=SHARD,
        engine=engine,
        progress=lambda done, total, text: reported.append((done, total)),
    )
    helper.join()
    files = sorted(file.name for file in (tmp_path / "local").iterdir())
    assert killed and sorted(file.name for file in (tmp_path / "out").iterdir()) == files and len(files) > 4
    assert filecmp.cmpfiles(tmp_path / "local", tmp_path / "out", files, shallow=False)[0] == files
    assert reported[-1][0] == reported[-1][1] > 0


def test_a_cancelled_run_leaves_nothing_behind_on_the_cluster(engine, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was the best of tokens. " * 40, encoding="utf-8")
    run_id = jobs.submit(
        RunSpec(str(tiny.checkpoint("llama", tmp_path / "llama")), "int8", text=str(text)), engine
    )
    path = RunFolder(run_id).path / "events-baseline.jsonl"
    worker = wait_for(lambda: [event["pid"] for event in events(path)])[0]
    assert jobs.cancel(run_id).state == "cancelled"
    wait_for(
        lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE, 60
    )

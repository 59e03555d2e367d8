"""Kill -9 of a server, a worker, a task or all at once at random moments of every long job, 200 times.

    python benchmarks/kills.py                      200 rounds, about ten minutes
    python benchmarks/kills.py --rounds 20 --seed 7

A round starts a comparison, a quantization in memory (GPTQ, with calibration), a streamed quantization, an
export or a training of a tiny model, kills one of its processes or all of them at a random moment, and
checks:

    - the run ends, is not taken for running, and says in one sentence why
    - no process of the run is left
    - every row that had been finished is there, unchanged, in the run's folder and in the database
    - the output folder holds the whole old model or the whole new one, and no other folder is beside it
    - the same request again succeeds, with the result of a run that was never killed, byte by byte; shards
      and rows that had been finished are not made again; nothing temporary is left
    - the database is sound

"submit" kills the server while it submits. A kill leaves the system's cache of the disk intact, so this is
not a power cut: `tests/base/test_files.py` holds that files are flushed before they get their names. The
processes are forks (see `forks.py`), which makes a round take seconds. The last line is JSON; a run of 200
rounds or more is saved in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

from benchmarks.forks import Fork, Machine, adopt_orphans, import_modules, reap, started_run, write_modules  # noqa: E402
from qcore.base.home import home  # noqa: E402

ROUNDS = 200
KINDS = ("compare", "quantize", "stream", "export", "train")
ROLES = ("submit", "server", "worker", "child", "machine")
END_SECONDS = 30.0  # for a run to end after a kill
SHARD = 60_000  # bytes, so that the tiny model has several shards
VOLATILE = ("README.md",)  # holds the time of the run
CURVES = ("curve", "validations")
RESULTS = ROOT / "benchmarks" / "results"


@dataclass
class Round:
    """One round: what was killed and when, how the run ended, and the violations."""

    number: int
    kind: str
    role: str
    moment: float
    overwrite: bool
    phase: str = ""
    state: str = ""
    kept: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def hold(self, condition: object, sentence: str) -> bool:
        """Note a violation unless `condition` holds; return whether it does."""
        if not condition:
            self.wrong.append(sentence)
        return bool(condition)


class World:
    """A cache folder, a tiny model, and what runs that were never killed made of it."""

    def __init__(self, place: Path):
        self.place = place
        self.model, self.modules = place / "model", place / "modules"
        self.out = place / "out"
        self.out.mkdir()
        os.environ.setdefault("QCORE_KERNELS", str(home() / "kernels"))  # compiled once
        os.environ["QCORE_HOME"] = str(place / "home")
        self.whole: dict[str, Any] = {}
        self.old: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    # -- requests --------------------------------------------------------------------------------------------

    def request(self, kind: str, overwrite: bool = False):
        """Return the request of a job of this kind."""
        from qcore.jobs.kind_folder import ExportRequest, QuantizeRequest
        from qcore.jobs.kind_make import QatRequest
        from qcore.recipes import parse
        from qcore.recipes.spec import RunSpec
        from qcore.training.loop import Schedule
        from qcore.training.qat import Qat

        out, model = str(self.out / kind), str(self.model)
        folder = {"model": model, "out": out, "overwrite": overwrite}
        if kind == "compare":
            short = {"tokens": 64, "window": 32, "prompt_tokens": 8, "new_tokens": 2, "repeats": 1}
            return RunSpec(model, ("fp32", "int8", "int4-g64"), generate=False, threads=1, **short)
        if kind == "stream":
            return QuantizeRequest(recipe=parse("int4-g64"), **folder)
        if kind == "export":
            return ExportRequest(recipe=parse("gguf-q8_0"), to="gguf", **folder)
        schedule = Schedule(steps=16, batch=1, validations=4, patience=1000)
        options = Qat(window=32, tokens=256, schedule=schedule)
        return QatRequest(recipe=parse("int4-g32"), options=options, **folder)

    def quantize(self, overwrite: bool, modules: Path | None = None) -> None:
        """Quantize in memory with a method that calibrates, as the command does."""
        from qcore.recipes import parse
        from qcore.verbs import quantize
        from qcore.verbs.prepare import CalibrationText

        quantize.run(
            str(self.model),
            parse("int4-g32-gptq"),
            self.out / "quantize",
            overwrite=overwrite,
            calibration=CalibrationText(None, 256),
            progress=_silent,
        )
        if modules is not None:
            write_modules(modules)

    # -- what a run leaves -----------------------------------------------------------------------------------

    def result(self, kind: str) -> Any:
        """Return what is in the folder that the last run of `kind` made."""
        return contents(self.out / kind)

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make the model, an older result, and the result of each kind by a run that is not killed."""
        Fork(lambda: _make_model(self.model)).wait()
        for kind in KINDS:
            for _ in range(2):  # the first run names the modules that it imports
                shutil.rmtree(self.out / kind, ignore_errors=True)
                began = time.monotonic()
                self._whole(kind)
                self.seconds[kind] = time.monotonic() - began
                import_modules(self.modules)
            if kind != "compare":
                self.whole[kind] = self.result(kind)
                if kind != "export":
                    shutil.copytree(self.out / kind, self.place / "older", dirs_exist_ok=True)
            say(f"{kind}: {self.seconds[kind]:.1f} s without a kill")
        self.old = contents(self.place / "older")

    def _whole(self, kind: str) -> None:
        """Run a job of this kind to its end."""
        if kind == "quantize":
            assert Fork(lambda: self.quantize(False, self.modules)).wait() == 0, "the quantization failed"
            return
        folder, machine = self.run(kind)
        _wait(lambda: not _status(folder).active)
        machine.kill("machine")
        found = _status(folder)
        assert found.state == "done", f"{kind} is {found.state}: {found.error}\n{found.log_tail}"
        if kind == "compare":
            self.whole[kind] = _figures(folder)

    def run(
        self, kind: str, overwrite: bool = False, killed_after: float | None = None
    ) -> tuple[Any, Machine]:
        """Start a job in the processes of a machine of its own; return its folder, if it was submitted, and
        the machine. With `killed_after` the server is killed so many seconds after it began."""
        from qcore.jobs import jobs
        from qcore.results.folder import run_ids

        known, machine = set(run_ids()), Machine(self.place / "book", self.modules)
        server = machine.serve(lambda: jobs.submit(self.request(kind, overwrite)))
        if killed_after is not None:
            time.sleep(killed_after)
            server.kill()
            server.wait()
        return started_run(known, 10.0 if killed_after is None else 0.5), machine


# -- a round -------------------------------------------------------------------------------------------------


def play(world: World, this: Round) -> None:
    """Play one round; violations are noted in it."""
    began = time.monotonic()
    target = world.out / this.kind
    shutil.rmtree(target, ignore_errors=True)
    if this.overwrite:
        shutil.copytree(world.place / "older", target)
    (_play_quantize if this.kind == "quantize" else _play_job)(world, this)
    if this.kind != "compare":
        left = [path.name for path in world.out.iterdir() if path.name.startswith(f".{this.kind}.")]
        this.hold(not left, f"left beside the result: {', '.join(left)}")
    with closing(sqlite3.connect(world.place / "home" / "qcore.db")) as db:
        sound = db.execute("PRAGMA integrity_check").fetchone()[0]
    this.hold(sound == "ok", f"the database: {sound}")
    reap()
    this.seconds = time.monotonic() - began


def _play_quantize(world: World, this: Round) -> None:
    task = Fork(lambda: world.quantize(this.overwrite))
    time.sleep(this.moment)
    task.kill()
    this.state = "interrupted" if task.wait() else "done"
    _check_folder(world, this)
    code = Fork(lambda: world.quantize((world.out / this.kind).exists())).wait(END_SECONDS)
    this.hold(code == 0, f"the repetition ended with {code}")
    _check_result(world, this)


def _play_job(world: World, this: Round) -> None:
    from qcore.jobs import jobs
    from qcore.results.store import Store

    submitting = this.role == "submit"
    folder, machine = world.run(this.kind, this.overwrite, this.moment if submitting else None)
    if folder is None:
        this.state = "never started"
        this.hold(submitting, "the job was not submitted")
        _check_folder(world, this)
        return
    if not submitting:
        time.sleep(this.moment)
    this.phase = str((folder.read("status.json") or {}).get("phase"))
    machine.kill(this.role)
    before = {path.name: path.read_bytes() for path in (folder.path / "rows").glob("*.json")}
    shards = _shards(world.out, this.kind)
    this.kept = len(before) + len(shards)
    _wait(lambda: (reap(), not _status(folder).active)[1])
    status = _status(folder)
    this.state = status.state
    if not this.hold(not status.active, f"the run still counts as {status.state}"):
        jobs.cancel(folder.run_id)
    if status.state != "done":
        this.hold(status.error and "\n" not in status.error, f"no sentence says why it is {status.state}")
    machine.kill("server")
    _wait(lambda: (reap(), not machine.living())[1], 10)
    this.hold(not machine.living(), "processes of the run were left")
    machine.kill("machine")
    for name, text in before.items():
        this.hold((folder.path / "rows" / name).read_bytes() == text, f"the finished row {name} changed")
    stored = [row["recipe"] for row in Store().rows(folder.run_id)]
    this.hold(
        stored == [row["recipe"] for row in jobs.rows(folder.run_id)], "rows are missing in the database"
    )
    this.hold(Store().notice is None, "the database was replaced")
    _check_folder(world, this)
    if this.state != "done":
        _repeat(world, this, folder, shards)


def _repeat(world: World, this: Round, folder: Any, shards: dict[str, int]) -> None:
    from qcore.jobs import jobs
    from qcore.results.folder import run_ids

    if this.kind != "compare" and (world.out / this.kind).exists() and not this.overwrite:
        return  # the model was published before the kill, and is not replaced unasked
    known, machine = set(run_ids()), Machine(world.place / "book")
    machine.serve(lambda: jobs.repeat(folder.run_id))
    again = started_run(known)
    if not this.hold(again is not None, "the repetition was not submitted"):
        return
    _wait(lambda: (reap(), not _status(again).active)[1])
    status = _status(again)
    if not this.hold(status.state == "done", f"the repetition is {status.state}: {status.error}"):
        return
    machine.kill("machine")
    if this.kind == "compare":
        this.hold(_figures(again) == world.whole["compare"], "the repetition has other figures")
        taken = sum("Taken over" in str(row["record"]["notes"]) for row in jobs.rows(again.run_id))
        finished = sum(row["recipe"] != "fp32" and row["status"] == "ok" for row in jobs.rows(folder.run_id))
        this.hold(
            this.state != "interrupted" or taken == finished, f"{taken} of {finished} rows were taken over"
        )
        return
    _check_result(world, this)
    for name, inode in shards.items():
        path = world.out / this.kind / name
        this.hold(path.exists() and path.stat().st_ino == inode, f"{name} was written again")


def _check_result(world: World, this: Round) -> None:
    found, right = world.result(this.kind), world.whole[this.kind]
    this.hold(found == right, f"the repetition made something else: {_differing(found, right)}")


def _check_folder(world: World, this: Round) -> None:
    """Check that the output folder is the old model, the new one or absent, and that nothing is beside it."""
    target = world.out / this.kind
    if target.exists():
        found, new = contents(target), world.whole.get(this.kind) or {}
        right = found == new or this.overwrite and found == world.old
        this.hold(right, f"neither the old nor the new model is whole: {_differing(found, new)}")
    else:
        this.hold(not this.overwrite, "neither the old nor the new model is there")
    others = [path.name for path in world.out.iterdir() if not path.name.startswith(".")]
    this.hold(set(others) <= set(KINDS), f"other folders: {others}")


def _shards(out: Path, kind: str) -> dict[str, int]:
    """Return {name: inode} of the shards that an unfinished streaming has finished."""
    for note in out.glob(f".{kind}.streaming-*/finished.json"):
        try:
            names = json.loads(note.read_text())["shards"]
        except (OSError, ValueError, KeyError):
            continue
        paths = (note.with_name(name) for name in names)
        return {path.name: path.stat().st_ino for path in paths if path.exists()}
    return {}


def contents(folder: Path) -> dict[str, str]:
    """Return {name: SHA-256} of a folder's files, without durations and files that hold the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in VOLATILE:
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def _differing(one: dict[str, str], other: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


def _timeless(value: Any) -> Any:
    """Return a record without its durations and moments; they come third in a point of a loss curve."""
    if isinstance(value, dict):
        return {
            key: [[*point[:2], *point[3:]] for point in item] if _is_curve(key, item) else _timeless(item)
            for key, item in value.items()
            if "seconds" not in key
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _is_curve(key: str, item: Any) -> bool:
    return key in CURVES and isinstance(item, list)


def _figures(folder: Any) -> list[tuple]:
    """Return the figures of a comparison that do not depend on the machine's speed."""
    from qcore.jobs import jobs

    rows = jobs.rows(folder.run_id)
    names = ("recipe", "status", "stored_bytes", "perplexity", "kl_mean", "top1_agreement")
    return [tuple(row[name] for name in names) for row in rows]  # type: ignore[literal-required]


def _status(folder: Any):
    from qcore.jobs import jobs

    return jobs.status(folder.run_id)


def _wait(condition: Callable[[], bool], seconds: float = END_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)


def _silent(done: int, total: int, text: str = "") -> None:
    pass


def _make_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.make_checkpoint import byte_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=257,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def _load_libraries() -> None:
    """Import what all processes need, once, and run nothing: threads do not survive a fork."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    from transformers.models.llama import modeling_llama  # noqa: F401

    import qcore.library.gguf_folder  # noqa: F401
    import qcore.quantization.methods.gptq  # noqa: F401
    import qcore.training.qat  # noqa: F401
    from qcore.base.quiet import silence
    from qcore.jobs import jobs
    from qcore.streaming import quantizing
    from qcore.verbs import compare, export, qat, quantize  # noqa: F401

    quantizing.quantize.__kwdefaults__["shard_bytes"] = SHARD
    jobs.START_SECONDS = 3.0  # forks start faster than processes
    silence()


def main() -> int:
    """Play the rounds and print the result as JSON; return 1 after a violation."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="jobs to kill")
    options = parser.parse_args()
    adopt_orphans()
    _load_libraries()
    chance, rounds, began = random.Random(options.seed), [], time.time()
    place = Path(tempfile.mkdtemp(prefix="qcore-kills-"))
    try:
        world = World(place)
        world.prepare(_say)
        kinds = options.kinds.split(",")
        for number in range(options.rounds):
            kind = kinds[number % len(kinds)]
            role = "child" if kind == "quantize" else chance.choice(ROLES)
            moment = chance.uniform(0, 0.1 if role == "submit" else 1.1 * world.seconds[kind])
            this = Round(number, kind, role, moment, kind != "compare" and chance.random() < 0.5)
            play(world, this)
            rounds.append(this)
            _say(f"{number:4} {kind:9} {role:8} at {moment:.2f} s, {this.state:11} {'; '.join(this.wrong)}")
            if this.wrong and os.environ.get("KILLS_STOP"):
                break
    finally:
        if not os.environ.get("KILLS_KEEP"):
            shutil.rmtree(place, ignore_errors=True)
    return _finish(rounds, options.seed, began)


def _finish(rounds: list[Round], seed: int, began: float) -> int:
    from qcore.base.files import write_json
    from qcore.measurement.environment import environment

    wrong = [asdict(each) for each in rounds if each.wrong]
    result = {
        "benchmark": "kills",
        "date": date.today().isoformat(),
        "rounds": len(rounds),
        "seed": seed,
        "violations": wrong,
        "killed": Counter(f"{each.kind}: {each.role}" for each in rounds),
        "ended": Counter(f"{each.kind}: {each.state}" for each in rounds),
        "phases": Counter(each.phase for each in rounds if each.phase),
        "finished_parts_kept": sum(each.kept for each in rounds),
        "old_model_present": sum(each.overwrite for each in rounds),
        "seconds": time.time() - began,
        "environment": environment(),
    }
    if len(rounds) >= ROUNDS:
        write_json(RESULTS / f"kills-{result['date']}.json", result)
    print(json.dumps({name: result[name] for name in ("rounds", "violations", "ended", "seconds")}))
    return 1 if wrong else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

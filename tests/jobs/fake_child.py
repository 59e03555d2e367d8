"""`python fake_child.py RUN_DIR`: a real worker whose children load nothing.

The spec's text holds the behavior per recipe.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from qcore.jobs import worker
from qcore.jobs.child import Emitter
from qcore.jobs.runner_local import LocalRunner
from qcore.results.folder import RunFolder
from qcore.results.rows import ROW_KEYS


def child(path: str, which: str, channel: int) -> int:
    folder = RunFolder(Path(path).name)
    spec = folder.read("spec.json")
    name = "baseline" if which == "baseline" else spec["recipes"][int(which)]["name"]
    plan = json.loads(spec["text"] or "{}").get(name, "ok")
    print(f"{name} does {plan}", flush=True)
    emit = Emitter(channel)
    emit({"phase": "load", "done": 1, "total": 2, "detail": ""})
    (folder.path / f"began-{name}").write_text(str(os.getpid()))
    if plan == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "exit":
        return 3
    if plan == "silent":
        return 0
    if plan == "garbage":
        os.write(channel, b'{"event": "phase", "pha')
        os.kill(os.getpid(), signal.SIGSEGV)
    if plan in ("InputError", "RunError", "TooLargeError"):
        return emit.error(plan, f"{name} cannot be done.")
    if plan in ("hang", "deaf"):
        if plan == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if plan == "slow":
        time.sleep(0.5)
    if which != "baseline":
        figures = {**dict.fromkeys(ROW_KEYS, 1.0), "choices": None}
        row = {**figures, "recipe": name, "status": "ok", "error": None, "record": {"model": spec["model"]}}
        folder.write_row(int(which), row)
    return 0


if __name__ == "__main__":
    run = RunFolder(Path(sys.argv[1]).name)
    if json.loads(run.read("spec.json")["text"] or "{}").get("worker") == "deaf":
        worker._stop = lambda number, frame: None
    worker.start(run, LocalRunner(run, child, imports=()))

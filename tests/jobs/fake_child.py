"""A stand-in for `qcore.jobs.recipe_worker` that loads nothing: what it does with each recipe is written in
the spec's text.

As `python fake_child.py worker RUN_DIR` it is a real worker whose children are stand-ins.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from qcore.jobs import recipe_worker, worker
from qcore.results.folder import RunFolder
from qcore.results.rows import ROW_KEYS


def command(folder, position, events):
    return [sys.executable, __file__, "child", str(folder.path), str(position), str(events)]


def child(folder: RunFolder, which: str, channel: int) -> int:
    spec = folder.read("spec.json")
    name = "baseline" if which == "None" else spec["recipes"][int(which)]["name"]
    plan = json.loads(spec["text"] or "{}").get(name, "ok")
    print(f"{name} does {plan}", flush=True)
    emit = recipe_worker._Emitter(channel)
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
    if which != "None":
        figures = {**dict.fromkeys(ROW_KEYS, 1.0), "choices": None}
        row = {**figures, "recipe": name, "status": "ok", "error": None, "record": {"model": spec["model"]}}
        folder.write_row(int(which), row)
    return 0


if __name__ == "__main__":
    run = RunFolder(Path(sys.argv[2]).name)
    if sys.argv[1] == "worker":
        if json.loads(run.read("spec.json")["text"] or "{}").get("worker") == "deaf":
            worker._stop = lambda number, frame: None
        worker.Worker(run, command).run()
    else:
        import threading

        threading.Thread(target=recipe_worker.end_with_parent, daemon=True).start()
        sys.exit(child(run, sys.argv[3], int(sys.argv[4])))

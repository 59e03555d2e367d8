"""Words of strangers do not steer the terminal: characters that are not seen are escaped."""

import json

import pytest
import samples

from qcore.base.files import write_json
from qcore.base.home import home
from qcore.cli.output import write_output
from qcore.cli.progress import Show

HOSTILE = "\x1b]0;title\x07\x1b[31mred\x9b2J \u202eright\u2066 \u200bzero \x00 \r \u2028line"
STEERING = "\x1b\x07\x9b\u202e\u2066\u200b\x00\r\u2028"
pytestmark = [pytest.mark.usefixtures("own_home"), pytest.mark.row("16")]


def check(status, out, err):
    assert status in (0, 1) and not set(STEERING) & set(out + err), (out, err)
    return out + err


def test_runs_are_listed_and_shown(said):
    rows = [samples.row("fp32"), samples.row("int8", status="failed", error=HOSTILE)]
    run = samples.write_run(home(), rows, model=HOSTILE, state="failed", error=HOSTILE)
    (home() / "runs" / run / "log.txt").write_text(HOSTILE, newline="")
    assert "right" in check(*said("runs"))
    assert "right" in check(*said("runs", "show", run))
    assert "right" in check(*said("runs", "log", run))


def test_results_of_other_jobs_are_shown(said):
    run = samples.write_run(home(), [], model=HOSTILE, kind="export")
    write_json(home() / "runs" / run / "spec.json", {"kind": "export", "model": HOSTILE, "to": HOSTILE})
    outcome = {"model": HOSTILE, "to": "gguf", "recipe": HOSTILE, "files": [HOSTILE], "notes": [HOSTILE]}
    outcome |= {
        "folder": HOSTILE,
        "stored_bytes": 1,
        "bits_per_weight": 4.0,
        "seconds": 1.0,
        "agreement": None,
    }
    write_json(home() / "runs" / run / "outcome.json", outcome)
    check(*said("runs", "show", run))


def test_a_run_is_shared_by_its_owner(said):
    run = samples.write_run(home(), [samples.row("fp32")])
    status, out, _ = said("runs", "share", run)
    assert status == 0 and "every visitor" in out
    assert json.loads((home() / "runs" / run / "status.json").read_text())["owner"] == "everybody"


def test_progress_and_results(capsys):
    with Show() as show:
        show.run(0.1, HOSTILE, HOSTILE)
    write_output(None, None, f"first {HOSTILE}\n\tsecond")
    out, err = capsys.readouterr()
    assert not set(STEERING) & set(out + err) and out.endswith("\n\tsecond\n")

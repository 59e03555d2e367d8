"""What a public server grants a visitor: names, sizes, the number of runs, their time."""

import time

import pytest

from qcore.base import limits
from qcore.base.errors import InputError
from qcore.base.home import home
from qcore.jobs import jobs, public
from qcore.jobs.status import JobStatus
from qcore.recipes.spec import RunSpec

pytestmark = pytest.mark.usefixtures("own_home")


def request(**changes) -> dict:
    return RunSpec("owner/name", ("fp32", "int8")).to_dict() | changes


def job(owner: str, state: str = "running", age: float = 0.0) -> JobStatus:
    return JobStatus("20260101-000000-000000", state, owner=owner, created_at=time.time() - age)


@pytest.mark.row("1")
@pytest.mark.parametrize(
    "model",
    [
        "../../etc",
        "/etc/passwd",
        "\\\\server\\share",
        "a/b/c",
        "a" * 10_000,
        "~",
        ".",
        "https://hf.co/a/b",
        "a/b\x00",
    ],
    ids=["traversal", "absolute", "UNC", "three parts", "10 kB", "home", "here", "address", "NUL"],
)
def test_a_name_that_is_no_hub_id_is_refused_before_the_disk_is_read(model):
    with pytest.raises(InputError):
        public.check_request(request(model=model))


@pytest.mark.row("2")
def test_a_local_folder_is_refused_though_it_exists(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="not accepted here"):
        public.check_request(request(model=str(tmp_path / "model")))


@pytest.mark.row("2")
@pytest.mark.parametrize(
    "name", ["saved:/home/me/model", "file:/etc/passwd", "file:x.gguf/../../y", "saved:~"]
)
def test_a_recipe_that_names_a_path_is_refused(name):
    with pytest.raises(InputError):
        public.check_request(RunSpec("owner/name", ("fp32", name)).to_dict())
    public.check_request(RunSpec("owner/name", ("fp32", "file:owner/other")).to_dict())


@pytest.mark.row("2")
@pytest.mark.parametrize("field", ["text", "prompts", "choices", "calibration", "imatrix"])
@pytest.mark.parametrize("value", ["/etc/passwd", "notes.txt", "texts/../../x.txt"])
def test_files_of_the_server_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        public.check_request(request(**{field: value}))
    public.check_request(request(**{field: "default"}))


def test_an_upload_is_a_text_like_any_other():
    public.check_request(request(text=str(home() / "texts" / f"{'a' * 24}.txt")))
    with pytest.raises(InputError, match="text"):
        public.check_request(request(text=str(home() / "texts" / ".." / "texts" / f"{'a' * 24}.txt")))


@pytest.mark.parametrize("field", public.LARGEST["compare"])
def test_sizes_are_checked_whatever_the_form_allowed(field):
    largest = public.LARGEST["compare"][field]
    public.check_request(request(**{field: largest}))
    with pytest.raises(InputError, match=f"{field} is"):
        public.check_request(request(**{field: largest + 1}))


def test_the_number_of_recipes_is_limited():
    names = ["fp32", "int8", "int4-g32", "int4-g64", "int3", "int2", "nf4-g64", "kmeans4", "int8-g64"]
    with pytest.raises(InputError, match="8 recipes"):
        public.check_request(RunSpec("owner/name", tuple(names)).to_dict())


@pytest.mark.row("2", "18")
@pytest.mark.parametrize(
    "record",
    [
        {"kind": "qat", "model": "a/b", "options": {"schedule": {"minutes": 600}}},
        {"kind": "qat", "model": "a/b", "options": {"text": "/etc/passwd"}},
        {"kind": "prune", "model": "a/b", "options": {"calibration": "/etc/passwd"}},
        {"kind": "sensitivity", "model": "a/b", "measure_tokens": 512},
        {"kind": "audit", "model": "a/b", "values": True},
        {"kind": "export", "model": "a/b", "out": "/srv/www"},
        {"kind": "export", "model": "a/b", "out": "{home}/made/../x"},
        {"kind": "quantize", "model": "a/b", "out": "{home}/made/x", "overwrite": True},
        {"kind": "quantize", "model": "a/b", "out": "{home}/made/x", "address": "ray://inside:1"},
    ],
)
def test_other_kinds_are_checked_too(record):
    if "out" in record:
        record = record | {"out": record["out"].format(home=home())}
    with pytest.raises(InputError):
        public.check_request(record)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ([job("me"), job("me", "queued")], "2 runs that have not ended"),
        ([job("me", "done", 60.0)] * 10, "10 runs in the last hour"),
        ([job(f"visitor {number}", "queued") for number in range(20)], "queue is full"),
        ([job("me", "done", 4000.0)] * 30 + [job("you")] * 5, None),
    ],
    ids=["active", "hourly", "queue", "admitted"],
)
def test_a_visitor_may_not_start_any_number_of_runs(others, why):
    if why is None:
        public.admit("me", others)
    else:
        with pytest.raises(InputError, match=why):
            public.admit("me", others)


def test_two_visitors_with_the_same_request_have_a_job_each(monkeypatch):
    monkeypatch.setattr(jobs, "_start", lambda folder: None)
    spec = RunSpec("smollm2-135m", ("fp32",))
    first = jobs.submit(spec, visitor="me")
    assert jobs.submit(spec, visitor="me") == first  # a double click
    second = jobs.submit(spec, visitor="you")
    assert second != first and [jobs.status(each).owner for each in (first, second)] == ["me", "you"]
    assert jobs.status(first).limit_s == 60 * limits.limits().minutes
    assert jobs.status(jobs.submit(spec)).owner is None


@pytest.mark.slow
def test_a_run_that_exceeds_its_time_is_ended_and_says_so(fake, ended, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "minutes=0.02")
    monkeypatch.setattr(public, "check_request", lambda record: None)  # its model is a stand-in
    run = jobs.submit(fake("fp32,int8,int4", int8="hang"), visitor="me")
    found = ended(run)
    assert found.state == "failed" and [each["state"] for each in found.recipes] == ["ok", "failed", "failed"]
    assert (
        "ended after 0.02 minutes, the most that this server allows; 1 finished rows were kept" in found.error
    )
    assert [row["recipe"] for row in jobs.rows(run)] == ["fp32"]
    assert jobs.status(jobs.repeat(run, visitor="me")).owner == "me"

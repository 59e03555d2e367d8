"""Kinds of model names, and the names that are refused by their pattern."""

from pathlib import Path

import pytest

from qcore.base.errors import InputError
from qcore.base.home import DEFAULT_MODELS
from qcore.models.names import classify

HUB_IDS = ["gpt2", "owner/name", "Owner_1/Some-Model.v2", "a/b", "HuggingFaceTB/SmolLM2-135M-Instruct"]
NOT_HUB_IDS = [
    "../../etc",
    "../x",
    "/etc/passwd",
    "//server/share",
    r"\\server\share",
    r"C:\models\x",
    "a/b/c",
    "x" * 10_000,
    "owner/",
    "/name",
    "owner/..",
    "own..er/x",
    "a--b/x",
    "-a/b",
    "a/b-",
    ".hidden/x",
    "owner/name.git",
    "owner/na me",
    "owner/näme",
    "~/models",
    "owner\\name",
    "https://host/owner/name",
    "owner/name?x=1",
    "owner/name%2f..",
    "./here",
]


@pytest.mark.parametrize("name", HUB_IDS)
def test_hub_ids(name):
    assert classify(name).kind == classify(name, public=True).kind == "hub"


@pytest.mark.row("1")
@pytest.mark.parametrize("name", NOT_HUB_IDS, ids=lambda name: name[:20])
def test_the_public_can_name_nothing_but_hub_ids(name, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("the disk was looked at")

    for method in ("is_dir", "is_file", "exists", "stat", "expanduser"):
        monkeypatch.setattr(Path, method, forbidden)
    with pytest.raises(InputError) as raised:
        classify(name, public=True)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", NOT_HUB_IDS, ids=lambda name: name[:20])
def test_at_home_they_are_paths_that_do_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name != "/etc/passwd":
        with pytest.raises(InputError):
            classify(name)


@pytest.mark.row("2")
def test_a_folder_of_the_public_is_not_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert classify("owner/name").kind == "folder"
    assert classify("owner/name", public=True).kind == "hub"


@pytest.mark.parametrize("name", [*DEFAULT_MODELS, "SmolLM2-135M", " smollm2-135m "])
def test_defaults(name):
    found = classify(name, public=True)
    assert (found.kind, found.text in DEFAULT_MODELS) == ("default", True)


def test_gguf_files(tmp_path):
    (tmp_path / "model.GGUF").write_bytes(b"GGUF")
    assert classify(tmp_path / "model.GGUF").kind == "gguf"
    assert classify(str(tmp_path / "absent.gguf")).kind == "gguf"


@pytest.mark.row("1")
@pytest.mark.parametrize(
    "name", ["", "   ", "a\0b", "a\nb", "a\u202eb", "a\u200bb", "\x1b[31m", "a\ud800"], ids=ascii
)
@pytest.mark.parametrize("public", [False, True], ids=["home", "public"])
def test_blank_and_invisible_characters(name, public):
    with pytest.raises(InputError) as raised:
        classify(name, public=public)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", [None, 3, b"x", ["x"]], ids=repr)
def test_other_types(name):
    with pytest.raises(InputError, match="must be a string or a path"):
        classify(name)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(InputError, match="is a file, but a model is a folder"):
        classify(tmp_path / "model.txt")


def test_a_path_object_is_never_a_hub_id():
    with pytest.raises(InputError, match="is neither a folder or file here nor a hub id"):
        classify(Path("owner/name"))


@pytest.mark.row("1")
def test_the_name_of_a_path_that_is_too_long_for_the_system():
    with pytest.raises(InputError):
        classify("x" * 500)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/7", "0123abcd"])
def test_revisions(revision):
    assert classify("owner/name", revision).revision == revision


@pytest.mark.parametrize(
    "revision", ["", "../main", "a b", "x" * 200, "-x", "a\n"], ids=lambda text: repr(text)[:12]
)
def test_impossible_revisions(revision):
    with pytest.raises(InputError, match="is not a valid revision"):
        classify("owner/name", revision)


@pytest.mark.parametrize("name, kind", [("smollm2-135m", "default"), (".", "local folder")])
def test_only_hub_ids_have_revisions(name, kind):
    with pytest.raises(InputError, match=f"is a {kind}. Leave it out"):
        classify(name, "main")


def test_blanks_around_a_path_belong_to_it_if_it_exists_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model ", " model", "plain"):
        (tmp_path / name).mkdir()
    assert classify("model ", public=False).text == "model "
    assert classify(" model", public=False).text == " model"
    assert classify(" plain\n", public=False).text == "plain"
    assert classify(" owner/name ", public=True).text == "owner/name"


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("rest", ["", "/tree/main", "?x=1"])
def test_an_address_of_the_hub_says_what_to_give(rest, public):
    with pytest.raises(InputError, match="is an address. Give the hub id alone: owner/name.$"):
        classify(f"https://huggingface.co/owner/name{rest}", public=public)


def test_a_file_of_a_folder_says_what_to_give(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"Give its folder: {tmp_path}"):
        classify(tmp_path / "config.json", public=False)

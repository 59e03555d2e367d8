"""`push` against a hub on this machine: what is sent, and what is refused before anything is sent."""

import fakehub
import pytest
import tiny

import qcore
from qcore.base.errors import InputError, UnavailableError

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with fakehub.serve() as served:
        fakehub.point_library_at(monkeypatch, served.url, tmp_path / "cache")
        yield served


@pytest.fixture
def folder(tmp_path):
    tiny.checkpoint("llama", tmp_path / "original")
    return qcore.save(qcore.quantize(str(tmp_path / "original"), "int4-g32"), tmp_path / "small")


def sent(hub):
    return [path for method, path in hub.requests if method == "POST"]


def test_a_folder_is_uploaded_whole_and_private(hub, folder, said):
    (folder / ".secret").write_text("not for others")
    status, out, err = said("push", folder, "me/small")
    assert status == 0, err
    assert hub.created == {"me/small": True} and out.strip() == f"{hub.url}/me/small"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    assert hub.uploads["me/small"] == files and {"README.md", "qcore.json"} <= set(files)


def test_a_repository_of_the_user_gets_the_new_version(hub, folder):
    hub.repositories["me/small"] = folder
    assert qcore.push(folder, "me/small").endswith("/me/small")
    assert not hub.created and "model.safetensors" in hub.uploads["me/small"]


def test_public_only_on_request(hub, folder):
    hub.repositories["me/small"] = folder
    hub.open_to_all.add("me/small")
    with pytest.raises(InputError, match="everybody can see it"):
        qcore.push(folder, "me/small")
    assert sent(hub) == []
    qcore.push(folder, "me/small", public=True)
    qcore.push(folder, "me/new", public=True)
    assert hub.created == {"me/new": False} and set(hub.uploads) == {"me/small", "me/new"}


def other_folder(folder):
    return tiny.checkpoint("llama", folder.parent / "other")


def changed_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def lost_card(folder):
    (folder / "README.md").unlink()


def link(folder):
    (folder / "vocabulary.txt").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "spoil, repo_id, words",
    [
        (other_folder, "me/small", "was not written by qcore"),
        (changed_weights, "me/small", "not the file that qcore wrote"),
        (lost_card, "me/small", "has no README.md"),
        (link, "me/small", "symbolic link vocabulary.txt"),
        (lambda folder: None, "small", "Write OWNER/NAME"),
        (lambda folder: None, "../../etc", "Write OWNER/NAME"),
    ],
    ids=["another's folder", "changed weights", "no card", "a link", "no owner", "traversal"],
)
def test_nothing_is_sent(spoil, repo_id, words, hub, folder, said):
    folder = spoil(folder) or folder
    status, _, err = said("push", folder, repo_id)
    assert status == 2 and words in err and hub.requests == []


def test_without_a_token_nothing_is_sent(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="no token for the hub"):
        qcore.push(folder, "me/small")
    assert hub.requests == []


@pytest.mark.row("20")
def test_failures_never_show_the_token(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises((InputError, UnavailableError)) as caught:
        qcore.push(folder, "me/small")
    assert "hf_wrong" not in str(caught.value) and hub.uploads == {}
    hub.answers["me/small", "info"] = (503, {})
    with pytest.raises(UnavailableError):
        qcore.push(folder, "me/small")

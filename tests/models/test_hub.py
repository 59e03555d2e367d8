"""Downloads from a hub that runs on localhost, and every way in which a hub can refuse."""

import json
import socket
import time

import fakehub
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import qcore
from qcore import library
from qcore.base.errors import InputError, QcoreError, UnavailableError
from qcore.models import hub as hub_module
from qcore.models import packaged


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with fakehub.serve() as server:
        fakehub.point_library_at(monkeypatch, server.url, tmp_path / "cache")
        yield server


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("repository") / "tiny")


def copy(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_model_is_downloaded_checked_and_loaded(hub, repository):
    hub.repositories["owner/tiny"] = repository
    seen = []
    loaded = library.load("owner/tiny", progress=lambda done, total, what: seen.append((done, total, what)))
    assert loaded.checkpoint.source == "hub"
    assert loaded.checkpoint.revision == fakehub.COMMIT
    assert fakehub.COMMIT[:12] in loaded.checkpoint.description
    ids = torch.arange(16)[None]
    assert torch.equal(loaded.model(ids).logits, tiny.model("llama")(ids).logits)
    size = (repository / "model.safetensors").stat().st_size
    assert (size, size, "downloading model.safetensors") in seen


def test_it_is_the_same_model_as_a_copy_of_the_folder(hub, repository):
    hub.repositories["owner/tiny"] = repository
    assert library.resolve("owner/tiny").digest == library.resolve(repository).digest


def test_the_second_time_no_weights_are_downloaded(hub, repository):
    hub.repositories["owner/tiny"] = repository
    library.resolve("owner/tiny")
    hub.requests.clear()
    library.resolve("owner/tiny")
    assert not hub.asked_for("model.safetensors")


@pytest.mark.parametrize("revision", ["main", fakehub.COMMIT])
def test_a_revision(hub, repository, revision):
    hub.repositories["owner/tiny"] = repository
    assert library.resolve("owner/tiny", revision).revision == fakehub.COMMIT


def test_only_what_is_needed_is_downloaded(hub, repository, tmp_path):
    folder = copy(repository, tmp_path / "full")
    for name in (
        "pytorch_model.bin",
        "README.md",
        "modeling_tiny.py",
        "original.gguf",
        "optimizer.safetensors",
    ):
        (folder / name).write_bytes(b"x")
    hub.repositories["owner/full"] = folder
    library.resolve("owner/full")
    asked = {path.rsplit("/", 1)[-1] for _, path in hub.requests}
    assert not asked & {
        "pytorch_model.bin",
        "README.md",
        "modeling_tiny.py",
        "original.gguf",
        "optimizer.safetensors",
    }


def test_without_the_hub_an_earlier_download_is_used_and_said_so(hub, repository, monkeypatch):
    hub.repositories["owner/tiny"] = repository
    first = library.resolve("owner/tiny")
    point_at_nothing(monkeypatch)
    again = library.resolve("owner/tiny")
    assert again.digest == first.digest
    assert "could not be reached, so an earlier download was used" in again.description


def point_at_nothing(monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.mark.row("20")
def test_unreachable(hub, monkeypatch):
    point_at_nothing(monkeypatch)
    with pytest.raises(
        UnavailableError, match="hub cannot be reached, so owner/tiny cannot be downloaded.*smollm2-135m"
    ):
        library.resolve("owner/tiny")


@pytest.mark.row("20")
def test_switched_off(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match="hub cannot be reached"):
        library.resolve("owner/tiny")


def test_a_misspelt_default_is_asked_about(hub):
    with pytest.raises(
        InputError, match="There is no model smolm2-135m on the hub.*Did you mean smollm2-135m"
    ):
        library.resolve("smolm2-135m")


@pytest.mark.row("20")
def test_missing(hub):
    with pytest.raises(InputError, match="There is no model owner/nothing on the hub, or it is private"):
        library.resolve("owner/nothing")


@pytest.mark.row("20")
def test_missing_revision(hub, repository):
    hub.repositories["owner/tiny"] = repository
    with pytest.raises(InputError, match="owner/tiny has no revision 'v9'"):
        library.resolve("owner/tiny", "v9")


@pytest.mark.row("20")
@pytest.mark.parametrize("kind", ["info", "files"])
def test_gated(hub, repository, kind):
    hub.repositories["owner/gated"] = repository
    hub.answers["owner/gated", kind] = (403, {"X-Error-Code": "GatedRepo"})
    with pytest.raises(InputError, match="owner/gated is gated.*Ask for it"):
        library.resolve("owner/gated")


@pytest.mark.row("20")
def test_rate_limited(hub):
    hub.answers["owner/tiny", "info"] = (429, {"Retry-After": "300"})
    with pytest.raises(UnavailableError, match="rate limit of the hub"):
        library.resolve("owner/tiny")


@pytest.mark.row("F7")
@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_in_trouble(hub, status):
    hub.answers["owner/tiny", "info"] = (status, {})
    with pytest.raises(UnavailableError, match=f"answered with an error \\(status {status}\\)"):
        library.resolve("owner/tiny")


@pytest.mark.row("F7")
@pytest.mark.parametrize("kind", ["info", "files"])
@pytest.mark.parametrize("how", ["silent", "headers", "body"])
def test_a_hub_that_never_ends_is_given_up(hub, repository, monkeypatch, how, kind):
    """A byte every two seconds kept each time limit for a single read, for ever."""
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.5)
    hub.repositories["owner/tiny"] = repository
    hub.slow["owner/tiny", kind] = how
    began = time.monotonic()
    for find in (library.resolve, library.outline):
        with pytest.raises(UnavailableError, match="sends nothing or next to nothing, so owner/tiny was"):
            find("owner/tiny")
    assert time.monotonic() - began < 5


@pytest.mark.row("F7")
def test_a_hub_that_limits_and_falls_silent_is_given_up(hub, repository, monkeypatch):
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.5)
    hub.repositories["owner/tiny"] = repository
    hub.answers["owner/tiny", "files"] = (429, {"Retry-After": "0"})
    hub.slow["owner/tiny", "files"], hub.first["owner/tiny", "files"] = "silent", 2
    with pytest.raises(UnavailableError, match="sends nothing or next to nothing|rate limit"):
        library.resolve("owner/tiny")


@pytest.mark.row("F7")
def test_a_hub_that_redirects_for_ever(hub, repository):
    hub.repositories["owner/tiny"] = repository
    hub.answers["owner/tiny", "info"] = (302, {"Location": f"{hub.url}/api/models/owner/tiny"})
    with pytest.raises(UnavailableError, match="hub cannot be reached"):
        library.resolve("owner/tiny")
    del hub.answers["owner/tiny", "info"]
    hub.answers["owner/tiny", "files"] = (302, {"Location": f"{hub.url}/owner/tiny/resolve/main/config.json"})
    with pytest.raises(UnavailableError, match="hub cannot be reached"):
        library.resolve("owner/tiny")


@pytest.mark.row("F7")
def test_an_earlier_download_serves_while_the_hub_is_silent(hub, repository, monkeypatch):
    hub.repositories["owner/tiny"] = repository
    first = library.resolve("owner/tiny")
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.5)
    hub.slow["owner/tiny", "info"] = "silent"
    assert library.resolve("owner/tiny").digest == first.digest


def test_something_that_is_no_hub(hub):
    hub.garbage = True
    with pytest.raises(UnavailableError, match="is not a model hub"):
        library.resolve("owner/tiny")


@pytest.mark.row("4")
@pytest.mark.parametrize(
    "files, message",
    [
        (["config.json", "pytorch_model.bin"], "only pickled weights"),
        (["config.json", "model.Q4.gguf"], "only GGUF"),
        (["config.json", "README.md"], "no safetensors"),
        (["model.safetensors"], "no config.json"),
    ],
    ids=["pickle", "gguf", "nothing", "no-config"],
)
def test_repositories_without_usable_weights_are_refused_before_a_download(hub, tmp_path, files, message):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    hub.repositories["owner/odd"] = folder
    with pytest.raises(InputError, match=message):
        library.resolve("owner/odd")
    assert len(hub.requests) == 1


def shards(folder, *lost):
    """Cut the weights in `folder` into two files with an index, without those `lost`."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[:10], sorted(tensors)[10:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in lost:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "qcore.json"])
def test_a_small_file_that_is_not_small_is_refused_before_its_download(hub, repository, tmp_path, name):
    folder = copy(repository, tmp_path / "long")
    with (folder / name).open("ab") as file:
        file.truncate(100_000_000)
    hub.repositories["owner/long"] = folder
    for find in (library.resolve, library.outline):
        with pytest.raises(InputError, match=f"{name} of owner/long is 100 MB"):
            find("owner/long")
    assert hub.sent < 1_000_000


@pytest.mark.row("F8")
@pytest.mark.parametrize(
    ("kind", "message"),
    [("lama", "Unknown architecture 'lama'. Did you mean llama"), ("vit", "does not predict the next token")],
)
def test_an_architecture_without_a_class_is_refused_before_its_weights(
    hub, repository, tmp_path, kind, message
):
    """Gigabytes were downloaded before."""
    folder = copy(repository, tmp_path / "unknown")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": kind}
    (folder / "config.json").write_text(json.dumps(config))
    hub.repositories["owner/unknown"] = folder
    with pytest.raises(InputError, match=message):
        library.resolve("owner/unknown")
    assert not hub.asked_for("model.safetensors")


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record["tensors"][0].update(shape=[64, 10**7]), "has the shape|another shape"),
        (
            lambda record: record["tensors"][0]["format"].update(group_size=1 << 40),
            "group_size is 1099511627776",
        ),
        (lambda record: record["recipe"]["weights"].update(bits=8), "but the recipe"),
        (
            lambda record: record.update(sha256={"../x.safetensors": "0" * 64}),
            "not the name of a weight file",
        ),
        (lambda record: record.update(tensors="all"), "instead of a list"),
    ],
    ids=["shape", "group", "bits", "path", "type"],
)
def test_a_strangers_manifest_is_refused_as_a_local_one(hub, repository, tmp_path, damage, message):
    saved = qcore.save(qcore.quantize(str(repository), "int4-g64"), tmp_path / "saved")
    record = json.loads((saved / "qcore.json").read_text())
    damage(record)
    (saved / "qcore.json").write_text(json.dumps(record))
    hub.repositories["owner/saved"] = saved
    for name in ("owner/saved", str(saved)):
        with pytest.raises(InputError, match=message):
            qcore.load(name)


def test_weights_that_are_there_twice_are_downloaded_once(hub, repository, tmp_path):
    hub.repositories["owner/twice"] = shards(copy(repository, tmp_path / "twice"))
    for find in (library.outline, library.resolve):
        assert find("owner/twice").tensors.keys() == library.resolve(repository).tensors.keys()
    assert (
        "holds its weights twice; model.safetensors was taken" in library.resolve("owner/twice").description
    )
    assert not hub.asked_for("model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "lost, message",
    [
        ("model-00002-of-00002.safetensors", "lacks model-00002-of-00002.safetensors on the hub"),
        ("model.safetensors.index.json", "neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_half_a_model_is_refused_before_its_weights(hub, repository, tmp_path, lost, message):
    hub.repositories["owner/half"] = shards(copy(repository, tmp_path / "half"), "model.safetensors", lost)
    with pytest.raises(InputError, match=message):
        library.resolve("owner/half")
    assert not hub.asked_for("model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "requires code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized .gptq"),
    ],
    ids=["code", "quantized"],
)
def test_what_config_forbids_is_refused_before_the_weights(hub, repository, tmp_path, change, message):
    folder = copy(repository, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    hub.repositories["owner/changed"] = folder
    with pytest.raises(InputError, match=message):
        library.resolve("owner/changed")
    assert not hub.asked_for("model.safetensors")


@pytest.mark.row("20")
def test_no_message_shows_the_token(hub, repository):
    hub.repositories["owner/tiny"] = repository
    cases = [
        (401, {}),
        (401, {"X-Error-Message": f"Invalid credentials {fakehub.TOKEN}"}),
        (403, {}),
        (404, {}),
        (429, {}),
        (500, {}),
        (418, {}),
    ]
    for status, headers in cases:
        hub.answers["owner/tiny", "info"] = (status, headers)
        with pytest.raises(QcoreError) as raised:
            library.resolve("owner/tiny")
        assert fakehub.TOKEN not in str(raised.value)


@pytest.mark.row("33")
def test_a_full_disk_is_seen_before_the_weights(hub, repository, monkeypatch):
    from types import SimpleNamespace

    hub.repositories["owner/tiny"] = repository
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UnavailableError, match="Downloading owner/tiny needs"):
        library.resolve("owner/tiny")
    assert not hub.asked_for("model.safetensors")


def test_an_error_of_the_callers_own_passes_through(hub, repository):
    hub.repositories["owner/tiny"] = repository

    class Cancelled(BaseException):
        pass

    def cancel(done, total, what):
        if what.startswith("downloading"):
            raise Cancelled

    with pytest.raises(Cancelled):
        library.resolve("owner/tiny", progress=cancel)


def test_the_default_model_comes_from_the_hub_where_there_is_one(hub, repository, monkeypatch, tmp_path):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    hub.repositories[packaged.HUB_ID] = repository
    checkpoint = library.resolve("smollm2-135m")
    assert checkpoint.source == "default"
    assert f"from the hub at commit {fakehub.COMMIT[:12]}" in checkpoint.description
    assert "Q4_1" not in checkpoint.description
    point_at_nothing(monkeypatch)
    assert library.resolve("smollm2-135m").digest == checkpoint.digest


def test_hub_names_are_asked_for_as_they_are(hub):
    with pytest.raises(InputError):
        library.resolve("gpt2")
    assert hub.requests == [("GET", "api/models/gpt2")]
    assert hub_module._PATIENCE <= 10


@pytest.fixture
def public(monkeypatch, own_home):
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    return own_home


@pytest.mark.row("20")
def test_a_public_server_lends_its_token_to_nobody_and_keeps_downloads_apart(
    hub, repository, public, tmp_path
):
    hub.repositories["owner/tiny"] = repository
    assert library.resolve("owner/tiny").folder.is_relative_to(public / "hub" / "models--owner--tiny")
    library.outline("owner/tiny")
    assert hub.tokens == {None} and not (tmp_path / "cache").exists()


def test_a_private_server_uses_the_token_of_its_owner(hub, repository, own_home):
    hub.repositories["owner/tiny"] = repository
    library.resolve("owner/tiny")
    assert hub.tokens == {fakehub.TOKEN}


@pytest.mark.row("20")
def test_what_the_owner_downloaded_before_is_no_visitors(hub, repository, public, monkeypatch):
    hub.repositories["owner/secret"] = repository
    monkeypatch.setenv("QCORE_PUBLIC", "0")
    library.resolve("owner/secret")
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    hub.answers["owner/secret", "info"] = (503, {})  # offline, an earlier download would be used
    with pytest.raises(QcoreError):
        library.resolve("owner/secret")


def test_a_model_above_the_memory_or_the_quota_is_refused_before_it_is_downloaded(
    hub, repository, public, monkeypatch
):
    hub.repositories["owner/tiny"] = repository
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "1000")
    with pytest.raises(InputError, match="GB of memory"):
        library.resolve("owner/tiny")
    monkeypatch.delenv("QCORE_MEMORY_LIMIT")
    monkeypatch.setenv("QCORE_PUBLIC_LIMITS", "disk=1kB")
    with pytest.raises(InputError, match="of models in all"):
        library.resolve("owner/tiny")
    assert not hub.asked_for("model.safetensors")

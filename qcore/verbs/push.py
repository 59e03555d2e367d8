"""`push`: upload a folder that qcore wrote to the hub, with the user's token; private by default."""

from __future__ import annotations

import re
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import expanded, read_json, sha256
from qcore.base.patience import watched
from qcore.library.saving import MARKERS
from qcore.models.hub import explain
from qcore.verbs.card import CARD, weight_files

_PATIENCE = 10  # seconds for the next bytes of an answer
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def run(folder: Path | str, repo_id: str, *, public: bool = False, message: str | None = None) -> str:
    """Upload the model in `folder` to the repository `repo_id` ("owner/name"), and return its address. A new
    repository is private unless `public`.

    Raise `InputError` before anything is sent: if qcore did not write the folder, if a weight file is not as
    it was written, without a token, or if the repository exists and is public without `public`. Raise
    `UnavailableError` if the hub does not answer.
    """
    folder = expanded(folder)
    check(folder, repo_id)
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    token = get_token()
    if token is None:
        raise InputError("There is no token for the hub. Log in with `hf auth login`, or set HF_TOKEN.")
    api = HfApi(token=token)
    try:
        try:
            found = watched(lambda moving: api.model_info(repo_id, timeout=_PATIENCE), seconds=3 * _PATIENCE)
        except RepositoryNotFoundError:
            api.create_repo(repo_id, private=not public)
        else:
            if not found.private and not public:
                raise InputError(
                    f"{repo_id} exists and everybody can see it. Choose another repository, or allow a "
                    "public one."
                )
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message or f"Upload {folder.name}",
            ignore_patterns=[".*", "*/.*"],
        )
    except Exception as error:
        explained = explain(error, repo_id, None)
        if explained is error:
            raise
        raise explained from error
    return str(done.repo_url)


def check(folder: Path, repo_id: str) -> None:
    """Raise `InputError` unless `folder` holds a complete model that qcore wrote, and `repo_id` is
    "owner/name". Weight files are compared with the SHA-256 with which they were written."""
    if not _REPOSITORY.fullmatch(repo_id):
        raise InputError(f"{repo_id[:100]!r} is not the name of a repository. Write OWNER/NAME.")
    marker = next((name for name in MARKERS if (folder / name).is_file()), None)
    if marker is None:
        raise InputError(
            f"{folder} was not written by qcore, so it is not uploaded. `hf upload` uploads any folder."
        )
    if not (folder / CARD).is_file():
        raise InputError(f"{folder} has no {CARD}. Make the model again: it gets a card with its licence.")
    links = sorted(path.name for path in folder.rglob("*") if path.is_symlink())
    if links:
        raise InputError(f"{folder} holds the symbolic link {links[0]}. Replace it by the file itself.")
    record = read_json(folder / marker)
    digests = record.get("sha256") if isinstance(record, dict) else None
    if isinstance(digests, str):
        digests = {path.name: digests for path in weight_files(folder)}
    for name, digest in (digests if isinstance(digests, dict) else {}).items():
        path = folder / Path(str(name)).name
        if not path.is_file() or sha256(path) != digest:
            raise InputError(f"{path} is not the file that qcore wrote there. Make the model again.")

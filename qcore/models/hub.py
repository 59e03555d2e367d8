"""Downloads from the hub: config, tokenizer and safetensors of one commit, and no other files.

The small files are downloaded and checked first, so that an unusable model is refused before gigabytes of
weights are fetched. Errors of the hub are reported in qcore's own words: the library's messages may quote
requests, and requests may contain a token.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qcore.base import quota
from qcore.base.errors import InputError, QcoreError, TooLargeError, UnavailableError
from qcore.base.home import DEFAULT_MODELS, check_space, is_public
from qcore.base.limits import limits
from qcore.base.patience import Moving, StalledError, watched
from qcore.base.progress import Progress
from qcore.base.registry import did_you_mean
from qcore.measurement.memory import total_bytes
from qcore.models.checkpoint import INDEX, PICKLED, SINGLE, index_files
from qcore.models.config import read_config, to_transformers
from qcore.models.headers import LONGEST_JSON

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_SMALL = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "quantize_config.json",
    "quant_config.json",
    "adapter_config.json",
    "qcore.json",
)
_DESCRIBING = (
    "config.json",
    INDEX,
    "quantize_config.json",
    "quant_config.json",
    "adapter_config.json",
    "qcore.json",
)
_PATIENCE = 10  # seconds for the next bytes of an answer
ANSWER_SECONDS = 30.0  # for a whole answer, and for the next LEAST bytes of a file
LEAST = 30_000
T = TypeVar("T")


def fetch(
    repo_id: str,
    revision: str | None,
    progress: Progress | None = None,
    *,
    patience: float = _PATIENCE,
    cached: bool = True,
    quantized: bool = False,
) -> tuple[Path, str, str]:
    """Download `repo_id` at `revision` (default: main) and return (folder, commit, a note for the
    description, usually empty).

    If the hub cannot be reached and `cached`, an earlier download is used and the note says so. Raise
    `InputError` for a model that is missing, gated, or not usable, `UnavailableError` if the hub is
    unreachable or limits the rate.
    """
    if progress is not None:
        progress(0, 0, f"querying the hub for {repo_id}")
    try:
        info = _info(repo_id, revision, patience)
    except UnavailableError:
        if cached and (folder := _cached(repo_id, revision)):
            return folder, folder.name, " The hub could not be reached, so an earlier download was used."
        raise
    sizes, note = _choose({file.rfilename: file.size or 0 for file in info.siblings or ()}, repo_id)
    _download(
        repo_id, "config.json", revision or "main", patience
    )  # by branch name, so that the cache finds it offline
    commit = _commit(info, repo_id)
    folder = _fetch_small(repo_id, sizes, commit, patience)
    to_transformers(read_config(folder, quantized=quantized)[0])  # an architecture without a class is refused
    weights = _weights(folder, sizes, repo_id)
    missing = sum(sizes[name] for name in weights if not (folder / name).exists())
    if is_public():
        _check_public(repo_id, sum(sizes[name] for name in weights), missing)
    check_space(folder, missing, f"Downloading {repo_id}")
    done, total = 0, sum(sizes[name] for name in weights)
    for name in weights:
        _download(repo_id, name, commit, patience, _shown(progress, done, total, f"downloading {name}"))
        done += sizes[name]
    return folder, commit, note


def look(
    repo_id: str, revision: str | None, *, patience: float = _PATIENCE
) -> tuple[Path, str, dict[str, int]]:
    """Return the small files of `repo_id` alone: (folder, commit, {name: size in bytes} of the weight files,
    which stay on the hub).

    Raise the errors of `fetch`.
    """
    commit, listed = listing(repo_id, revision, patience=patience)
    sizes, _ = _choose(listed, repo_id)
    folder = _fetch_small(
        repo_id, {name: sizes[name] for name in sizes if name in _DESCRIBING}, commit, patience
    )
    return folder, commit, {name: sizes[name] for name in _weights(folder, sizes, repo_id)}


def listing(repo_id: str, revision: str | None, *, patience: float = _PATIENCE) -> tuple[str, dict[str, int]]:
    """Return (commit, {name: size in bytes} of all files) of `repo_id`. Raise the errors of `fetch`."""
    info = _info(repo_id, revision, patience)
    return _commit(info, repo_id), {file.rfilename: file.size or 0 for file in info.siblings or ()}


def about(repo_id: str, commit: str, sizes: dict[str, int], *, patience: float = _PATIENCE) -> Path | None:
    """Download the files that describe the model, those of at most 64 MB, and return their folder; None if
    there are none. `sizes` is that of `listing`. Raise the errors of `fetch`."""
    wanted = {name: size for name, size in sizes.items() if name in _SMALL and size <= LONGEST_JSON}
    return _fetch_small(repo_id, wanted, commit, patience) if wanted else None


def _fetch_small(repo_id: str, sizes: dict[str, int], commit: str, patience: float) -> Path:
    """Download the small files that the repository has, config.json at least, and return their folder."""
    paths = [_download(repo_id, name, commit, patience) for name in _SMALL if name in sizes]
    return paths[0].parent


def _commit(info: ModelInfo, repo_id: str) -> str:
    if info.sha is None:
        raise UnavailableError(f"The hub names no commit of {repo_id}. Try again later.")
    return info.sha


def _choose(sizes: dict[str, int], repo_id: str) -> tuple[dict[str, int], str]:
    """Return the files to fetch first, and a note for the description (usually empty). A repository with both
    model.safetensors and an index holds its weights twice. The single file is used, as in transformers, and
    the index is left out, so that the folder holds one model.

    Raise `InputError` if the repository has no weights in a format that qcore reads, or an oversized file
    beside them.
    """
    for name in _SMALL:
        if sizes.get(name, 0) > LONGEST_JSON:
            raise InputError(
                f"{name} of {repo_id} is {sizes[name] / 1e6:.0f} MB; files beside the weights are limited to "
                f"{LONGEST_JSON / 1e6:.0f} MB."
            )
    if "config.json" not in sizes:
        raise InputError(f"{repo_id} has no config.json on the hub, so it is not a model that can be loaded.")
    if SINGLE in sizes and INDEX in sizes:
        left = {name: size for name, size in sizes.items() if name != INDEX}
        return left, f" The repository holds its weights twice; {SINGLE} was taken, as transformers does."
    if SINGLE in sizes or INDEX in sizes:
        return sizes, ""
    if any(name.endswith(".safetensors") for name in sizes):
        raise InputError(f"{repo_id} has safetensors files on the hub, but neither {SINGLE} nor {INDEX}.")
    if any(name.endswith(PICKLED) for name in sizes):
        raise InputError(
            f"{repo_id} has only pickled weights on the hub, which can run any code when opened, so qcore "
            "refuses them. Look for a safetensors version of this model."
        )
    if any(name.endswith(".gguf") for name in sizes):
        raise InputError(f"{repo_id} has only GGUF files on the hub. Download one and give its path instead.")
    raise InputError(f"{repo_id} has no safetensors weights on the hub.")


def _weights(folder: Path, sizes: dict[str, int], repo_id: str) -> list[str]:
    """Return the weight files, from the index in `folder` if there is one. Raise `InputError`, before the
    download, if the repository lacks one of them."""
    weights = [SINGLE] if SINGLE in sizes else index_files(folder)
    if missing := [name for name in weights if name not in sizes]:
        raise InputError(f"{repo_id} lacks {missing[0]} on the hub, which its {INDEX} lists.")
    return weights


def ask(
    call: Callable[[Moving], T],
    repo_id: str,
    revision: str | None,
    *,
    seconds: float | None = None,
    look: Callable[[int], None] | None = None,
) -> T:
    """Return the result of `call`, which asks the hub and reports the bytes that arrive; `look` gets their
    number. Raise the hub's errors in qcore's words, and `UnavailableError` if fewer than LEAST bytes arrive
    within `seconds` (None: ANSWER_SECONDS) before the call ends."""
    try:
        return watched(call, seconds=seconds or ANSWER_SECONDS, least=LEAST, look=look)
    except Exception as error:
        if (explained := explain(error, repo_id, revision)) is error:
            raise
        raise explained from error


def _info(repo_id: str, revision: str | None, patience: float) -> ModelInfo:
    from huggingface_hub import HfApi

    api = HfApi(token=access())
    return ask(
        lambda moving: api.model_info(repo_id, revision=revision, files_metadata=True, timeout=patience),
        repo_id,
        revision,
        seconds=min(3 * patience, ANSWER_SECONDS),
    )


def _download(
    repo_id: str, name: str, revision: str, patience: float, look: Callable[[int], None] | None = None
) -> Path:
    from huggingface_hub import hf_hub_download

    def download(moving: Moving) -> str:
        return hf_hub_download(
            repo_id,
            name,
            revision=revision,
            token=access(),
            cache_dir=_cache(repo_id),
            etag_timeout=patience,
            tqdm_class=_bar(moving),
        )

    return Path(ask(download, repo_id, revision, look=look))


def access() -> bool | None:
    """Return the token for the hub's library: on a public server none, so that visitors reach nothing that
    only the owner of the server may read; otherwise the library's own choice."""
    return False if is_public() else None


def _cache(repo_id: str) -> Path | None:
    """Return the cache folder for downloads, None for the library's own. A public server has its own, within
    a quota, and marks the model as used."""
    if not is_public():
        return None
    quota.use(quota.download_folder(repo_id))
    return quota.hub_folder()


def _check_public(repo_id: str, nbytes: int, missing: int) -> None:
    """Raise `InputError` if a model of `nbytes` fits neither the memory nor the disk quota of a public
    server; make room for the `missing` bytes."""
    limit = os.environ.get("QCORE_MEMORY_LIMIT", "")
    memory = min(total_bytes(), int(limit) if limit.isdecimal() else total_bytes())
    if nbytes > memory:
        raise TooLargeError(
            f"{repo_id} has {nbytes / 1e9:.1f} GB of weights, but this server has {memory / 1e9:.1f} GB of "
            "memory. Choose a smaller one."
        )
    quota.make_room(missing, limits().disk)


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """Return the folder of an earlier download. The check of its headers finds out whether it is complete."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, "config.json", cache_dir=_cache(repo_id), revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def explain(error: Exception, repo_id: str, revision: str | None) -> Exception:
    """Return an error of the hub's library as an error of qcore; return any other exception (such as a
    cancellation) unchanged."""
    import httpx2
    from huggingface_hub import errors

    cause: BaseException = error
    while isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__ is not None:
        cause = cause.__cause__  # "not in the cache" hides the reason why the download failed
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, QcoreError):
        return cause
    if isinstance(cause, StalledError):
        return UnavailableError(
            f"The hub sends nothing or next to nothing, so {repo_id} was given up. Try again later, or use "
            f"{DEFAULT_MODELS[0]} or a local folder."
        )
    if isinstance(cause, errors.GatedRepoError) or status == 403:
        return InputError(
            f"{repo_id} is gated: its owner gives access on request. Ask for it on the model's page, then "
            "log in with `hf auth login`."
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return InputError(
            f"{repo_id} has no revision {revision!r} on the hub. Leave it out for the latest one."
        )
    if isinstance(cause, errors.RepositoryNotFoundError) or status in (401, 404):
        return InputError(
            f"There is no model {repo_id} on the hub, or it is private.{_hint(repo_id)} Check the spelling, "
            "or log in with `hf auth login`."
        )
    if status == 429:
        return UnavailableError(
            "The rate limit of the hub is reached. Wait a few minutes, or log in with `hf auth login`."
        )
    if status is not None:
        return UnavailableError(
            f"The hub answered with an error (status {status}). Try again later, or give a local folder."
        )
    if isinstance(
        cause, httpx2.HTTPError | errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | OSError
    ):
        return UnavailableError(
            f"The hub cannot be reached, so {repo_id} cannot be downloaded.{_hint(repo_id)} "
            f"Check the network, or use {DEFAULT_MODELS[0]} or a local folder."
        )
    if isinstance(cause, ValueError):
        return UnavailableError(
            f"The server that answered for {repo_id} is not a model hub. Check HF_ENDPOINT and the network."
        )
    return error


def _hint(repo_id: str) -> str:
    """Return "Did you mean …?" for a misspelt default model."""
    hint = None if "/" in repo_id else did_you_mean(repo_id.lower(), DEFAULT_MODELS)
    return f" {hint}" if hint else ""


def _shown(progress: Progress | None, done: int, total: int, what: str) -> Callable[[int], None] | None:
    """Return a function that reports bytes of a file to `progress`, after `done` bytes of earlier files."""
    if progress is None:
        return None
    report = progress
    return lambda count: report(min(done + count, total), total, what)


def _bar(moving: Moving) -> type:
    """Return a progress bar class for the library that draws nothing and reports bytes to `moving`."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            moving(kwargs.get("initial") or 0)
            super().__init__(
                *args,
                **{key: value for key, value in kwargs.items() if key != "name"}
                | {"file": StringIO(), "disable": False},
            )

        def update(self, n=1):
            moving(n or 0)
            return super().update(n)

    return Bar

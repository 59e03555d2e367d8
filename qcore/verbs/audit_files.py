"""Checks of the files: are all there, whole, and the ones that the index names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from qcore.library.saving import MANIFEST
from qcore.models import gguf_header
from qcore.models.checkpoint import INDEX, PICKLED, SINGLE
from qcore.verbs.audit_subject import WEIGHTS, Subject
from qcore.verbs.audit_types import BROKEN, FOLDER, GGUF, KNOW, Spot, check

_SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})\.safetensors")
_AGAIN = "Download the file again, or save the model again."


@check(
    "file-truncated",
    BROKEN,
    "A weight file is shorter than its header promises",
    effect="Loading stops; runtimes that map the file crash, or read zeros in place of the last tensors.",
    remedy=_AGAIN,
    kinds=(FOLDER, GGUF),
)
def truncated(subject: Subject) -> Iterator[Spot]:
    """Compare the size of each file with the end of the last tensor in its header."""
    for file, length in subject.lengths.items():
        size = subject.files[file]
        if size < length:
            cut = [name for name, tensor in subject.tensors.items() if _beyond(subject, name, size)]
            yield Spot(
                file, f"It has {size:,} bytes, but its header describes {length:,}. Cut off: {_some(cut)}."
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:1]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _beyond(subject: Subject, name: str, size: int) -> bool:
    tensor = subject.tensors[name]
    return tensor.file in subject.lengths and tensor.start + tensor.nbytes > size


@check(
    "file-trailing",
    BROKEN,
    "A weight file is longer than its header promises",
    effect="The safetensors library refuses the file: the bytes behind the last tensor may hide other "
    "content.",
    remedy=_AGAIN,
)
def trailing(subject: Subject) -> Iterator[Spot]:
    """Compare the size of each file with the end of the last tensor in its header."""
    for file, length in subject.lengths.items():
        if subject.files[file] > length:
            yield Spot(file, f"{subject.files[file] - length:,} bytes belong to no tensor.")


@check(
    "file-damaged",
    BROKEN,
    "A file cannot be read",
    effect="No loader can open the model, or a part of it.",
    remedy=_AGAIN,
    kinds=(FOLDER, GGUF),
)
def damaged(subject: Subject) -> Iterator[Spot]:
    """Report the files whose header or JSON cannot be read."""
    for file, why in subject.damaged.items():
        if file != MANIFEST:
            yield Spot(file, why)


@check(
    "config-missing",
    BROKEN,
    "The folder has no config.json",
    effect="No loader can tell the architecture, so the weights cannot be used.",
    remedy="Take config.json from the original model.",
)
def config_missing(subject: Subject) -> Iterator[Spot]:
    """Look for config.json."""
    if "config.json" not in subject.files:
        yield Spot("config.json", "The file is missing.")


@check(
    "weights-pickled",
    BROKEN,
    "The only weights are pickled",
    effect="Opening a pickle can run any code, so many loaders refuse it.",
    remedy="Look for a safetensors version of the model, or convert it in a sandbox.",
)
def only_pickled(subject: Subject) -> Iterator[Spot]:
    """Look for pickled files where no other weights are."""
    if not subject.weight_files and not any(name.endswith((WEIGHTS, ".onnx")) for name in subject.files):
        yield from (Spot(name, f"{subject.files[name]:,} bytes.") for name in _pickled(subject))


@check(
    "pickled-beside",
    KNOW,
    "Pickled files lie beside the weights",
    effect="Loaders that prefer them run whatever code they hold; nothing ensures that they hold the same "
    "weights.",
    remedy="Delete them if nothing needs them.",
)
def pickled_beside(subject: Subject) -> Iterator[Spot]:
    """Look for pickled files beside safetensors."""
    if subject.weight_files:
        yield from (Spot(name, f"{subject.files[name]:,} bytes.") for name in _pickled(subject))


def _pickled(subject: Subject) -> list[str]:
    return [name for name in subject.files if name.endswith(PICKLED)]


@check(
    "shard-missing",
    BROKEN,
    "A weight file is missing",
    effect="Loading stops, or the layers in the missing file keep random weights.",
    remedy="Download the missing file.",
    kinds=(FOLDER, GGUF),
)
def missing_shard(subject: Subject) -> Iterator[Spot]:
    """Compare the files with the index, and shards with the count in their names."""
    if subject.kind == GGUF:
        yield from _missing_parts(subject)
        return
    index = subject.index
    if index is not None:
        for file in sorted(set(index.values()) - set(subject.files)):
            count = sum(other == file for other in index.values())
            yield Spot(file, f"{INDEX} places {count} tensors in it.")
        return
    for file in subject.weight_files:
        if match := _SHARD.fullmatch(file):
            for number in range(1, int(match[3]) + 1):
                sibling = file.replace(f"{match[2]}-of-", f"{number:05d}-of-")
                if sibling not in subject.files:
                    yield Spot(sibling, f"{file} names {int(match[3])} files; there is no {INDEX} either.")
            return


def _missing_parts(subject: Subject) -> Iterator[Spot]:
    for file in list(subject.lengths) or list(subject.files):
        if part := gguf_header.PART.search(Path(file).stem):
            for number in range(1, int(part[2]) + 1):
                sibling = gguf_header.PART.sub(f"-{number:05d}-of-{part[2]}", Path(file).stem) + ".gguf"
                if sibling not in subject.files:
                    yield Spot(sibling, f"{file} is one of {int(part[2])} parts.")


@check(
    "index-missing",
    BROKEN,
    "Several weight files have no index",
    effect="Loaders that follow the index find no weights; others read every file, stale ones too.",
    remedy=f"Take {INDEX} from the original model, or save the model again.",
)
def index_missing(subject: Subject) -> Iterator[Spot]:
    """Look for an index where there is no single file."""
    shards = [file for file in subject.weight_files if file in subject.files]
    if (
        shards
        and SINGLE not in subject.files
        and INDEX not in subject.files
        and not list(missing_shard(subject))
    ):
        yield Spot(shards[0], f"There is neither {SINGLE} nor {INDEX}.")


@check(
    "shard-stale",
    BROKEN,
    "A weight file does not belong to the model",
    effect="Runtimes that read every *.safetensors load old weights over the new ones, in silence.",
    remedy="Delete the files that the index does not list.",
)
def stale_shard(subject: Subject) -> Iterator[Spot]:
    """Compare the files with the index."""
    if SINGLE in subject.files:
        listed, owner = {SINGLE}, SINGLE
    elif (index := subject.index) is not None:
        listed, owner = set(index.values()), INDEX
    else:
        return
    for file in sorted(subject.files):
        stray = file.endswith(WEIGHTS) and file not in listed
        if stray and (_SHARD.fullmatch(file) or file.startswith("model") or file == SINGLE):
            yield Spot(
                file,
                f"It lies beside {owner}, which does not list it."
                if owner == INDEX
                else f"It lies beside {owner}, which is the whole model.",
            )
    if owner == SINGLE and INDEX in subject.files:
        yield Spot(INDEX, f"It lies beside {SINGLE}, so there are two models in the folder.")


@check(
    "index-wrong",
    BROKEN,
    "The index and the weight files disagree",
    effect="Loaders that follow the index do not find the tensor, and stop or leave it random.",
    remedy="Download the index again: the files belong to different models.",
)
def wrong_index(subject: Subject) -> Iterator[Spot]:
    """Compare the tensors of each file with the index."""
    index = subject.index
    if INDEX in subject.files and SINGLE not in subject.files and not index and INDEX not in subject.damaged:
        yield Spot(INDEX, "It has no weight_map.")
        return
    for name, file in (index or {}).items():
        held = subject.tensors.get(name)
        wrong = held is None or (held.file != file and name not in subject.twice)
        if wrong and file in subject.lengths:
            where = f"; it is in {held.file}" if held else ", and no other file has it"
            yield Spot(name, f"The index places it in {file}, which does not hold it{where}.")
    if index:
        for name in sorted(set(subject.tensors) - set(index) - set(subject.twice)):
            yield Spot(name, f"{subject.tensors[name].file} holds it, but the index does not list it.")


@check(
    "tensor-twice",
    BROKEN,
    "A tensor is in two files",
    effect="The file that is read last decides the weights.",
    remedy="Delete the file that does not belong to the model.",
)
def tensor_twice(subject: Subject) -> Iterator[Spot]:
    """Report the names that occur in several headers."""
    for name, (first, second) in subject.twice.items():
        yield Spot(name, f"It is in {first} and in {second}.")


@check(
    "index-size",
    KNOW,
    "The index misstates the size",
    effect="The hub and planning tools show the wrong size or number of weights.",
    remedy=f"Correct total_size and total_parameters in {INDEX}.",
)
def index_size(subject: Subject) -> Iterator[Spot]:
    """Compare the index's totals with the headers: bytes of all tensors, and logical weights (packed codes
    count as the weights that they stand for)."""
    index = subject.settings.get(INDEX, {})
    about = index.get("metadata")
    if (
        not isinstance(about, dict)
        or subject.index is None
        or subject.damaged
        or list(missing_shard(subject))
    ):
        return
    held, stated = sum(tensor.nbytes for tensor in subject.tensors.values()), about.get("total_size")
    if isinstance(stated, int | float) and stated != held:
        yield Spot("total_size", f"It is {int(stated):,} bytes, but the tensors have {held:,}.")
    count, stated = subject.parameters, about.get("total_parameters")
    if isinstance(stated, int | float) and count is not None and abs(stated - count) > 0.01 * count:
        yield Spot("total_parameters", f"It is {int(stated):,}, but the model has {count:,} weights.")


@check(
    "qcore-manifest",
    BROKEN,
    "The manifest and the folder disagree",
    effect="qcore refuses to load the model.",
    remedy="Quantize the model again, or download it again.",
)
def manifest(subject: Subject) -> Iterator[Spot]:
    """Compare a folder that qcore wrote with its manifest, as loading does."""
    from qcore.verbs.audit_ours import differences

    if subject.is_ours:
        yield from differences(subject)

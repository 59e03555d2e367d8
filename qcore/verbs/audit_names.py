"""Checks of names and shapes: does every weight of the architecture have its tensor, and the reverse."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qcore.verbs.audit_subject import Subject
from qcore.verbs.audit_types import BROKEN, KNOW, Spot, check
from qcore.verbs.audit_weights import StoredWeight

_EXTRA_HEADS = re.compile(
    r"(^|\.)(mtp|mtp_block|nextn|eagle|medusa|shared_head)(\.|_|$)|layers\.\d+\.(eh_proj|enorm|hnorm)"
)
_SCALARS = ("k_scale", "v_scale", "q_scale", "input_scale", "output_scale", "kv_scale")


@check(
    "names-prefix",
    BROKEN,
    "The names of the tensors have lost or gained a prefix",
    effect="vLLM, llama.cpp's converter and others look tensors up by name: they stop, or leave the weights "
    "random. transformers puts some prefixes right.",
    remedy="Rename the tensors in the headers (and the index), or save the model again with the original "
    "class.",
)
def prefix(subject: Subject) -> Iterator[Spot]:
    """Compare the stored names with the model's, with each of the usual changes of prefix."""
    if subject.structure and (found := subject.structure.prefix) and not found.bridged:
        yield _prefix_spot(subject, found.stored, found.wanted)


@check(
    "names-bare",
    KNOW,
    "The tensors are named as in the bare decoder",
    effect="transformers adds the prefix when it loads the model; loaders that look tensors up by name do "
    "not "
    "find them.",
    remedy="Save the model once with transformers if another runtime is to read it.",
)
def bare(subject: Subject) -> Iterator[Spot]:
    """Report a checkpoint of the decoder without the class around it."""
    if subject.structure and (found := subject.structure.prefix) and found.bridged:
        yield _prefix_spot(subject, found.stored, found.wanted)


def _prefix_spot(subject: Subject, stored: str, wanted: str) -> Spot:
    first = next(
        (
            weight.name
            for weight in subject.weights
            if weight.name.startswith(stored)
            and subject.structure
            and subject.structure.in_model(weight.name) != weight.name
        ),
        "",
    )
    return Spot(
        first,
        f"Stored names begin with {stored!r} where the architecture has {wanted!r}."
        if stored and wanted
        else f"Stored names have the prefix {stored!r}, which the architecture does not have."
        if stored
        else f"Stored names lack the prefix {wanted!r}.",
    )


@check(
    "tensor-missing",
    BROKEN,
    "A weight of the architecture is missing",
    effect="Loaders stop, or initialise the layer at random and print a warning that is easily overlooked.",
    remedy="Download the model again, or export it again without leaving the module out.",
)
def missing(subject: Subject) -> Iterator[Spot]:
    """Report parameters that no stored weight fills. Tensors of missing files, absent experts and the output
    head are reported by their own checks."""
    if subject.structure:
        for name in subject.structure.missing:
            yield Spot(name, "No tensor of the files fills it.")


@check(
    "shape-wrong",
    BROKEN,
    "A tensor has another shape than config.json says",
    effect="Loading stops, or the layer is initialised at random.",
    remedy="Take config.json and the weights from the same model.",
)
def mismatched(subject: Subject) -> Iterator[Spot]:
    """Compare shapes; the rows of embedding and head are compared by the check of the vocabulary."""
    found = subject.structure
    if found is None:
        return
    for name, stored, wanted in found.mismatched:
        if not (name in (found.head, found.embedding) and stored[1:] == wanted[1:]):
            yield Spot(name, f"It has the shape {_shape(stored)}, the architecture {_shape(wanted)}.")


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


@check(
    "expert-missing",
    BROKEN,
    "An expert of a mixture is missing",
    effect="Loading stops, or the expert is random: every token that is routed to it is spoiled.",
    remedy="Quantize the model again with calibration text that reaches every expert, or download it again.",
)
def experts(subject: Subject) -> Iterator[Spot]:
    """Count the experts of each layer against config.json and against each other."""
    for name in subject.structure.experts if subject.structure else ():
        yield Spot(name, "Its siblings are there, this one is not.")


@check(
    "tensor-unclaimed",
    KNOW,
    "No module of the architecture claims a tensor",
    effect="Loaders drop the tensor in silence, and a model saved again does not have it. Heads for "
    "multi-token prediction are lost for speculative decoding in this way.",
    remedy="Keep the original file if a runtime uses the tensor; otherwise nothing is to be done.",
)
def unclaimed(subject: Subject) -> Iterator[Spot]:
    """Report stored weights without a place, and extra heads that loaders skip on purpose."""
    found = subject.structure
    if found is None:
        return
    own = {name for name, _ in found.model.named_parameters(remove_duplicate=False)}
    skipped = [
        weight.name
        for weight in subject.weights
        if _EXTRA_HEADS.search(weight.name) and found.in_model(weight.name) not in own
    ]
    by_name = {weight.name: weight for weight in subject.weights}
    for name in sorted({*found.unclaimed, *skipped}):
        if not _is_scale(by_name[name], subject):
            yield Spot(name, f"{by_name[name].form}, {by_name[name].nbytes:,} bytes.")


def _is_scale(weight: StoredWeight, subject: Subject) -> bool:
    """Return whether the tensor is a scale of activations or of the cache, which only quantized runtimes
    read."""
    return bool(subject.quantization) and weight.name.rpartition(".")[2] in _SCALARS


@check(
    "head-missing",
    BROKEN,
    "The output head is not stored, and the tie flag is off",
    effect="The head is random, so every prediction is noise; some loaders stop with KeyError: "
    "lm_head.weight.",
    remedy="Set tie_word_embeddings to true in config.json if the original model ties them; otherwise export "
    "the head too.",
)
def head_missing(subject: Subject) -> Iterator[Spot]:
    """Look for the head of a model that is not tied."""
    found = subject.structure
    if (
        found
        and found.head
        and not found.tied
        and found.head_stored is None
        and not _in_unread(subject, found.head)
    ):
        yield Spot(found.head, "tie_word_embeddings is false, and no file holds the head.")


def _in_unread(subject: Subject, name: str) -> bool:
    index = subject.index or {}
    return any(
        other in index and index[other] not in subject.lengths
        for other in (name, name.removesuffix("weight") + "qweight")
    )


@check(
    "head-twice",
    KNOW,
    "A tied head is stored a second time",
    effect="The matrix takes its bytes twice on disk; loaders that follow the tie flag read one of them.",
    remedy="Leave the head out when saving, or set tie_word_embeddings to false if it is to differ.",
)
def head_twice(subject: Subject) -> Iterator[Spot]:
    """Look for the head of a tied model: equal to the embedding, or not compared."""
    if (pair := _both(subject)) and (same := _equal(subject, *pair)) is not False:
        what = "It equals the embedding." if same else "Its values were not compared with the embedding's."
        yield Spot(
            pair[0].name, f"tie_word_embeddings is true, and the head has {pair[0].nbytes:,} bytes. {what}"
        )


@check(
    "head-differs",
    BROKEN,
    "The tie flag is on, but the stored head differs from the embedding",
    effect="Loaders that follow the flag put the embedding in the head's place: predictions are not those of "
    "the model that was saved.",
    remedy="Set tie_word_embeddings to false in config.json.",
)
def head_differs(subject: Subject) -> Iterator[Spot]:
    """Compare the head of a tied model with the embedding, value by value."""
    if (pair := _both(subject)) and _equal(subject, *pair) is False:
        yield Spot(
            pair[0].name,
            f"It is stored as {pair[0].form}, the embedding as {pair[1].form}, with other values.",
        )


def _both(subject: Subject) -> tuple[StoredWeight, StoredWeight] | None:
    """Return the stored head and embedding of a tied model; None if one is not stored, or of another size."""
    found = subject.structure
    if found is None or not found.tied or found.head_stored is None or found.embedding_stored is None:
        return None
    return found.head_stored, found.embedding_stored


def _equal(subject: Subject, head: StoredWeight, embedding: StoredWeight) -> bool | None:
    """Return whether both are stored equally, part by part; None where values cannot be read."""
    if head.form != embedding.form or head.parts.keys() != embedding.parts.keys():
        return False
    pairs = [(name, embedding.parts[role]) for role, name in head.parts.items()]
    if any(subject.tensors[a].shape != subject.tensors[b].shape for a, b in pairs):
        return False
    values = [(subject.digest_of(a), subject.digest_of(b)) for a, b in pairs]
    if any(a is None or b is None for a, b in values):
        return None
    return all(a == b for a, b in values)

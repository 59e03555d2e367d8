"""Checks of the list of modules that a quantized checkpoint leaves in floating point.

Each library has its own reading of a pattern. A whole name or a part of it between dots is read alike by all:

    compressed-tensors    the whole name, "re:" and a regular expression, or the class of the module
    transformers          a regular expression from the start up to a dot, or the end of the name
    others                a substring
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qcore.base import patterns
from qcore.base.errors import InputError
from qcore.verbs.audit_structure import PREFIXES
from qcore.verbs.audit_subject import Subject
from qcore.verbs.audit_types import BROKEN, KNOW, LOSES, Spot, check
from qcore.verbs.audit_weights import AWQ, BNB, COMPRESSED, FP8, GPTQ

LISTS = ("ignore", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules", "exclude_modules")
_REGEX = "re:"
_SHOWN = 256  # characters of a pattern
_CLASSES = ("Linear", "Embedding", "Conv1D")
_BLOCK = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")


def ignore_list(subject: Subject) -> list[str]:
    """Return the patterns of the modules that are to stay in floating point, GPTQ's negative rules too."""
    found = [entry for key in LISTS for entry in _list(subject.quantization.get(key))]
    dynamic = subject.quantization.get("dynamic")
    if isinstance(dynamic, dict):
        found += [_REGEX + key.removeprefix("-:") for key in dynamic if str(key).startswith("-:")]
    return found


def _list(value: Any) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def matches(pattern: str, name: str) -> bool:
    """Return whether `pattern` names the module `name` in the reading of its own library: whole parts between
    dots, or a regular expression."""
    if pattern in (name, *_CLASSES):
        return True
    if not pattern.startswith(_REGEX) and f".{pattern}." in f".{name}.":
        return True
    try:
        return patterns.matches(_whole_parts(pattern), name)
    except InputError:  # see `reason_not_tried`
        return False


def reason_not_tried(pattern: str, names: Iterable[str]) -> str | None:
    """Return why a regular expression is not matched with all `names`, as a sentence; None if it is."""
    if pattern.startswith(_REGEX):
        try:
            patterns.check(pattern.removeprefix(_REGEX))
            for name in names:
                patterns.matches(_whole_parts(pattern), name)
        except InputError as error:
            return str(error)
    return None


def _whole_parts(pattern: str) -> str:
    """Return an expression that matches what `pattern` does, up to a dot or the end of the name."""
    return rf"(?:{pattern.removeprefix(_REGEX)})(?:(?<=\.)|(?=\.|$))"


def _names(subject: Subject) -> list[str]:
    """Return the names of all modules: the architecture's, and those of stored weights."""
    found = subject.structure
    own = [] if found is None else [name for name, _ in found.model.named_modules() if name]
    return [*own, *(weight.module for weight in subject.weights)]


def _modules(subject: Subject, *, quantized: bool) -> list[str]:
    """Return the linear layers that are stored in codes, or in floating point."""
    found = subject.structure
    if found is None:
        return []
    linear = set(found.linear)
    return [
        weight.module
        for weight in subject.weights
        if weight.quantized == quantized
        and weight.name.endswith(".weight")
        and found.in_model(weight.name).removesuffix(".weight") in linear
    ]


@check(
    "ignore-prefix",
    BROKEN,
    "A pattern of the ignore list has lost or gained a prefix",
    effect="Runtimes skip the pattern in silence and take float modules for quantized ones: loading stops, "
    "or "
    "the modules get random weights.",
    remedy="Correct the prefix in quantization_config of config.json.",
)
def lost_prefix(subject: Subject) -> Iterator[Spot]:
    """Look for patterns that match only after a change of prefix."""
    names = _names(subject) if subject.structure else []
    for pattern in ignore_list(subject) if names else ():
        if any(matches(pattern, name) for name in names):
            continue
        if (right := _with_prefix(pattern, names)) is not None:
            yield Spot(pattern, f"It matches no module; {right!r} would.")


def _with_prefix(pattern: str, names: Sequence[str]) -> str | None:
    """Return the pattern with the prefix with which it matches; None if no prefix helps."""
    marker = _REGEX if pattern.startswith(_REGEX) else ""
    body = pattern.removeprefix(_REGEX)
    for old, new in PREFIXES:
        for before, after in ((old, new), (re.escape(old), re.escape(new))):
            if body.startswith(before):
                changed = marker + after + body.removeprefix(before)
                if changed != pattern and any(matches(changed, name) for name in names):
                    return changed
    return None


@check(
    "ignore-nothing",
    KNOW,
    "A pattern of the ignore list matches no module",
    effect="The setting does nothing. If it was meant for a module of this model, that module is not exempt.",
    remedy="Remove the pattern, or correct its spelling.",
)
def nothing(subject: Subject) -> Iterator[Spot]:
    """Look for patterns that match no module, whatever the prefix."""
    names = _names(subject) if subject.structure else []
    for pattern in ignore_list(subject) if names else ():
        if any(matches(pattern, name) or pattern in name for name in names) or _with_prefix(pattern, names):
            continue
        yield Spot(pattern[:_SHOWN], reason_not_tried(pattern, names) or "No module has such a name.")


@check(
    "ignore-contradicted",
    BROKEN,
    "A module is on the ignore list, but is stored quantized",
    effect="Runtimes build a float layer for it and find no float weight: loading stops, or the layer is "
    "random.",
    remedy="Take the module off the ignore list in config.json.",
)
def contradicted(subject: Subject) -> Iterator[Spot]:
    """Compare the ignore list with the modules that are stored in codes."""
    listed = ignore_list(subject)
    for module in _modules(subject, quantized=True) if listed else ():
        if pattern := next((each for each in listed if matches(each, module)), None):
            yield Spot(module, f"The pattern {pattern!r} exempts it.")


@check(
    "ignore-substring",
    KNOW,
    "A pattern of the ignore list is part of the names of quantized modules",
    effect="Runtimes that read patterns as substrings take those modules for float ones and find no float "
    "weights; whole names are not affected.",
    remedy="Write the pattern so that it cannot be a part of another name, such as with a dot at its end.",
)
def substring(subject: Subject) -> Iterator[Spot]:
    """Look for patterns that are substrings of names that they do not match."""
    quantized = _modules(subject, quantized=True)
    for pattern in ignore_list(subject):
        hit = [
            name
            for name in quantized
            if not pattern.startswith(_REGEX) and pattern in name and not matches(pattern, name)
        ]
        if hit:
            yield Spot(pattern, f"It is part of {len(hit)} names, such as {hit[0]}.")


@check(
    "ignore-incomplete",
    BROKEN,
    "A module is stored in floating point, but the settings do not exempt it",
    effect="Runtimes build a quantized layer for it and find no codes: loading stops, or the layer is "
    "random.",
    remedy="Add the module to the ignore list in quantization_config of config.json.",
)
def incomplete(subject: Subject) -> Iterator[Spot]:
    """Compare the layers in floating point with the ignore list and the targets."""
    kinds = {weight.kind for weight in subject.weights if weight.quantized}
    if kinds & {COMPRESSED, GPTQ, AWQ, FP8}:
        yield from _not_exempt(subject)


@check(
    "ignore-requantized",
    LOSES,
    "A module is stored in floating point, but loading quantizes it",
    effect="bitsandbytes rounds the module when the model is loaded: the precision that was kept is lost.",
    remedy="Add the module to llm_int8_skip_modules in config.json.",
)
def requantized(subject: Subject) -> Iterator[Spot]:
    """The same for bitsandbytes, which can quantize while loading."""
    if any(weight.kind == BNB for weight in subject.weights):
        yield from _not_exempt(subject)


def _not_exempt(subject: Subject) -> Iterator[Spot]:
    found, listed = subject.structure, ignore_list(subject)
    if found is None or list(lost_prefix(subject)):
        return
    head = (found.head or "").removesuffix(".weight")
    inside = subject.quantization.get("modules_in_block_to_quantize")
    chosen = [name for group in inside for name in _list(group)] if isinstance(inside, list) else None
    for module in _modules(subject, quantized=False):
        if found.in_model(module) == head and "ignore" not in subject.quantization:
            continue  # only compressed-tensors quantizes the head unless it is on the list
        if found.in_model(module) != head and not _BLOCK.search(module):
            continue
        if any(matches(pattern, module) or reason_not_tried(pattern, [module]) for pattern in listed):
            continue
        if chosen is not None and not any(module.endswith(name) for name in chosen):
            continue
        if not _targeted(subject, module):
            continue
        yield Spot(module, "Its weight is not stored in codes, and no pattern names it.")


def _targeted(subject: Subject, module: str) -> bool:
    """Return whether a group of a compressed-tensors config targets the module; True for other libraries."""
    groups = subject.quantization.get("config_groups")
    if not isinstance(groups, dict):
        return True
    targets = [
        target
        for group in groups.values()
        if isinstance(group, dict)
        for target in _list(group.get("targets"))
    ]
    return any(matches(target, module) for target in targets)

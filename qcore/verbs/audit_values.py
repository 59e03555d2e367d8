"""Checks of values, one weight at a time: NaN, absurd scales, zero points in the wrong convention.

Tensors are mapped from the file and read in pieces, so an audit needs the memory of one weight at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qcore.base.errors import InputError
from qcore.interop import awq, gptq
from qcore.interop.grid import unpack_words
from qcore.models import gguf_header
from qcore.verbs.audit_types import BROKEN, FOLDER, GGUF, KNOW, LOSES, Spot, check, check_of_weights
from qcore.verbs.audit_weights import AWQ, BNB, COMPRESSED, FP8, GPTQ, MXFP4, PLAIN, StoredWeight

if TYPE_CHECKING:
    from qcore.verbs.audit_subject import Subject

Parts = Mapping[str, torch.Tensor]
PIECE = 1 << 22  # values looked at in one go
_SCALES = ("scale", "scales", "weight_scale", "weight_scale_inv", "absmax", "SCB", "weight_global_scale")
_LARGEST_WEIGHT = 1e4  # no language model's matrices come near
_SPREAD = 1e4  # a scale beyond so many medians of its tensor
_NAN_SCALE = 255  # the exponent of E8M0 that means NaN


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the values in flat pieces, in float32."""
    flat = tensor.reshape(-1)
    for start in range(0, len(flat), PIECE):
        yield flat[start : start + PIECE].float()


def _not_finite(tensor: torch.Tensor) -> int:
    return sum(int((~torch.isfinite(piece)).sum()) for piece in _pieces(tensor))


def _floats(parts: Parts) -> dict[str, torch.Tensor]:
    return {role: tensor for role, tensor in parts.items() if tensor.is_floating_point()}


@check_of_weights(
    "not-finite",
    BROKEN,
    "A weight or scale is NaN or infinite",
    effect="One such value makes every output of its layer NaN, and the model writes one token for ever, "
    "such "
    "as '!!!!'.",
    remedy="Quantize or download the model again. For an expert, use calibration text that reaches it.",
    kinds=(FOLDER, GGUF),
)
def not_finite(weight: StoredWeight, parts: Parts, subject: Subject) -> Iterator[Spot]:
    """Count the values that are not finite, in weights, scales and minimums."""
    for role, tensor in _floats(parts).items():
        if count := _not_finite(tensor):
            yield Spot(weight.parts.get(role, weight.name), f"{count:,} of {tensor.numel():,} values.")
    if weight.kind == MXFP4 and "scales" in parts and (count := int((parts["scales"] == _NAN_SCALE).sum())):
        yield Spot(weight.parts["scales"], f"{count:,} of {parts['scales'].numel():,} scales are NaN.")


def _scale_roles(weight: StoredWeight, parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
    for role in _SCALES:
        tensor = parts.get(role)
        if tensor is not None and tensor.is_floating_point() and tensor.numel() and not _not_finite(tensor):
            yield role, tensor


@check_of_weights(
    "scale-absurd",
    BROKEN,
    "A scale is absurd",
    effect="Weights of the group are thousands of times too large, all zero, or of the wrong sign: the "
    "layer's "
    "output is noise.",
    remedy="Quantize or download the model again.",
    kinds=(FOLDER, GGUF),
)
def absurd_scale(weight: StoredWeight, parts: Parts, subject: Subject) -> Iterator[Spot]:
    """Look for scales whose weights would exceed 10,000 in magnitude, scales beyond 10,000 times the median
    of their tensor, and tensors whose scales are all zero. Scales of trained models spread by a factor of
    some hundred. GPTQ, AWQ, compressed-tensors, fp8 and bitsandbytes also store no negative scale."""
    if weight.kind == PLAIN:
        yield from _absurd_weights(weight, parts)
        return
    for role, tensor in _scale_roles(weight, parts):
        name = weight.parts.get(role, weight.name)
        size = torch.cat([piece.abs() for piece in _pieces(tensor)])
        largest, middle = float(size.max()), float(size.median())
        if largest == 0:
            yield Spot(name, "Every scale is zero.")
        elif largest > _LARGEST_WEIGHT or (middle > 0 and largest > _SPREAD * middle):
            yield Spot(name, f"The largest scale is {largest:.3g}, the median {middle:.3g}.")
        elif weight.kind in (GPTQ, AWQ, COMPRESSED, FP8, BNB) and bool((tensor < 0).any()):
            yield Spot(name, f"{int((tensor < 0).sum()):,} of {tensor.numel():,} scales are negative.")


def _absurd_weights(weight: StoredWeight, parts: Parts) -> Iterator[Spot]:
    tensor = parts.get("weight")
    if tensor is None or tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel():
        return
    largest = max(float(piece.abs().max()) for piece in _pieces(tensor))
    if math.isfinite(largest) and largest > _LARGEST_WEIGHT:
        yield Spot(weight.name, f"The largest weight is {largest:.3g} in magnitude.")


@check_of_weights(
    "matrix-zero",
    LOSES,
    "A whole matrix is zero",
    effect="The layer contributes nothing; a matrix that was never written looks like this.",
    remedy="Compare with the original model, and quantize or download again unless it is zero there too.",
    kinds=(FOLDER, GGUF),
)
def zero_matrix(weight: StoredWeight, parts: Parts, subject: Subject) -> Iterator[Spot]:
    """Look for matrices in floating point without any value but zero."""
    tensor = parts.get("weight")
    bias = weight.name.endswith("bias")  # of experts, which are trained from zero
    if (
        weight.kind == PLAIN
        and tensor is not None
        and tensor.ndim >= 2
        and tensor.is_floating_point()
        and not bias
    ):
        matrices = tensor if tensor.ndim == 3 else tensor[None]
        for number, matrix in enumerate(matrices):
            if matrix.numel() and not any(bool(piece.any()) for piece in _pieces(matrix)):
                which = f" of matrix {number}" if tensor.ndim == 3 else ""
                yield Spot(weight.name, f"All {matrix.numel():,} values{which}.")


@check_of_weights(
    "parts-contradict",
    BROKEN,
    "The parts of a quantized weight contradict each other",
    effect="Loading stops, or kernels read past the end of a tensor.",
    remedy="Quantize or download the model again.",
)
def parts_contradict(weight: StoredWeight, parts: Parts, subject: Subject) -> Iterator[Spot]:
    """Look for missing parts and shapes that do not fit each other."""
    needed = {
        GPTQ: ("qweight", "qzeros", "scales"),
        AWQ: ("qweight", "qzeros", "scales"),
        COMPRESSED: ("weight_scale",),
        BNB: (),
    }.get(weight.kind, ())
    for role in needed:
        if role not in weight.parts:
            yield Spot(weight.name, f"Its part {role!r} is missing.")
            return
    if weight.kind in (GPTQ, AWQ) and weight.shape is not None:
        rows, columns = weight.shape
        groups = parts["scales"].shape[0]
        bits = weight.settings["bits"]
        zeros = (groups, rows * bits // 32)
        if tuple(parts["qzeros"].shape) != zeros:
            yield Spot(
                weight.parts["qzeros"],
                f"It has the shape {tuple(parts['qzeros'].shape)}, but the scales need {zeros}.",
            )
        stated = subject.quantization.get("bits", subject.quantization.get("w_bit"))
        if isinstance(stated, int) and stated != bits and "dynamic" not in subject.quantization:
            yield Spot(weight.name, f"Its codes have {bits} bits, but config.json says {stated}.")
        order = parts.get("g_idx")
        if order is not None and order.numel() and not 0 <= int(order.min()) <= int(order.max()) < groups:
            yield Spot(weight.parts["g_idx"], f"It names a group beyond the {groups} that have scales.")


# -- zero points ---------------------------------------------------------------------------------------------

LARGEST_ERROR = 1e-6  # of a decision about a tensor
_OUTPUTS, _STRETCHES = 32, 8  # outputs read per stretch of a matrix, and stretches
_MOST_BITS = 4


@dataclass(frozen=True)
class Vote:
    """The outcome for one weight: `offset` is the code that stands for zero minus the stored zero point, 0 or
    1, or None if the data do not decide. `error` bounds the probability of a wrong decision; `groups` voted,
    `share` of them for the outcome."""

    offset: int | None
    error: float
    groups: int
    share: float


def zero_point_offset(codes: torch.Tensor, stored: torch.Tensor, symmetric: int | None = None) -> Vote:
    """Decide whether the stored zero points are the zero points, or the zero points minus one.

    `codes` (N, G, group size) are the codes, `stored` (N, G) the zero points as stored; `symmetric` is the
    zero point of a symmetric grid, if the settings say that it is one. A symmetric grid decides at once.

    Otherwise the test is a sign test on group means. The weights of a trained model scatter around zero, so
    with the right zero point z the mean of code − z over a group scatters around 0, symmetrically and with
    one peak. Let d be the mean code minus the *stored* number: d scatters around 0 if z is stored as it is,
    and around 1 if z − 1 is stored. A group with −1 < d < 2 votes for the first if d < ½. Under either
    hypothesis it votes wrongly with a probability of at most ½, however widely d scatters. If a share s of G
    independent groups votes one way, a wrong decision therefore has a probability of at most

        exp(−2 G (s − ½)²)                                                 (Hoeffding's inequality)

    and the data decide only where that is at most 10⁻⁶. For 4 bits and groups of 128, d has a standard
    deviation of about ¼, 97 % of the groups vote rightly, and 32 groups are enough. Groups of one output
    share its mean, so they are not quite independent; a model has thousands of them. Eight-bit codes scatter
    too widely for the test, and are not decided.
    """
    if symmetric is not None:
        for offset in (0, 1):
            if bool((stored + offset == symmetric).all()):
                return Vote(offset, 0.0, stored.numel(), 1.0)
    distance = codes.float().mean(-1) - stored.float()
    # beyond one step on either side neither convention explains the group; both lie equally far inside
    votes = distance[(distance > -1) & (distance < 2)]
    groups = votes.numel()
    if not groups or groups < distance.numel() / 2:
        return Vote(None, 1.0, groups, 0.0)
    for_one = float((votes >= 0.5).float().mean())
    share = max(for_one, 1 - for_one)
    error = math.exp(-2 * groups * (share - 0.5) ** 2)
    return Vote(int(for_one > 0.5) if error <= LARGEST_ERROR else None, error, groups, share)


def vote(weight: StoredWeight, parts: Parts, symmetric: bool) -> Vote | None:
    """Return the decision about a GPTQ or AWQ weight, from outputs spread over the matrix; None where the
    test cannot be made."""
    bits, size = weight.settings["bits"], weight.settings["group_size"]
    if weight.shape is None or any(role not in parts for role in ("qweight", "qzeros", "scales")):
        return None
    middle = 1 << (bits - 1) if symmetric else None
    if bits > _MOST_BITS and middle is None:
        return None
    rows, columns = weight.shape
    stretches = max(1, min(_STRETCHES, rows // _OUTPUTS))
    codes, stored = [], []
    for number in range(stretches):
        first = number * (rows // stretches) // _OUTPUTS * _OUTPUTS
        chosen = _stretch(weight, parts, first, min(_OUTPUTS, rows - first))
        config = {"bits": bits, "group_size": size, "checkpoint_format": gptq.V2}
        try:
            grid = (gptq if weight.kind == GPTQ else awq).read(chosen, config)
        except InputError:
            return None
        groups = grid.scale.shape[1]
        if columns % groups:
            return None
        inputs = grid.codes if grid.group_of is None else grid.codes[:, grid.group_of.argsort(stable=True)]
        codes.append(inputs.unflatten(-1, (groups, -1)))
        stored.append(grid.zero)
    return zero_point_offset(torch.cat(codes), torch.cat(stored), middle)


def _stretch(weight: StoredWeight, parts: Parts, first: int, count: int) -> dict[str, torch.Tensor]:
    """Return the parts of `count` outputs from output `first` on."""
    lanes = 32 // weight.settings["bits"] if weight.kind == AWQ else 1
    bits = weight.settings["bits"]
    chosen = {
        "qweight": parts["qweight"][:, first // lanes : (first + count) // lanes],
        "qzeros": parts["qzeros"][:, first * bits // 32 : (first + count) * bits // 32],
        "scales": parts["scales"][:, first : first + count],
    }
    return chosen | ({"g_idx": parts["g_idx"]} if "g_idx" in parts else {})


def _stated(settings: Mapping[str, Any]) -> str | None:
    """Return the version of GPTQ's format that the settings name; None for an unknown one."""
    try:
        return gptq.version(settings)
    except InputError:
        return None


@check_of_weights(
    "zero-point-convention",
    BROKEN,
    "The zero points are stored in another convention than the settings say",
    effect="Every weight of the layer is off by one step of its scale; the model writes noise, such as "
    "'!!!!'.",
    remedy="Set checkpoint_format in quantization_config to the convention of the file: gptq stores zero "
    "points "
    "minus one, gptq_v2 as they are. AWQ stores them as they are.",
)
def zero_points(weight: StoredWeight, parts: Parts, subject: Subject) -> Iterator[Spot]:
    """Compare the convention that the values show (see `zero_point_offset`) with the one that the settings
    name."""
    if weight.kind not in (GPTQ, AWQ):
        return
    settings = subject.quantization
    symmetric = weight.kind == GPTQ and settings.get("sym") is True
    found = vote(weight, parts, symmetric)
    if found is None or found.offset is None or (weight.kind == GPTQ and _stated(settings) is None):
        return
    stated = int(weight.kind == GPTQ and _stated(settings) == gptq.V1)
    if found.offset != stated:
        words = ("as they are", "minus one")
        how = (
            "a symmetric grid leaves no doubt"
            if found.error == 0
            else f"{found.share:.0%} of {found.groups:,} groups; a wrong decision has at most the "
            f"probability {LARGEST_ERROR:.0e}"
        )
        yield Spot(
            weight.parts["qzeros"],
            f"The settings say that zero points are stored {words[stated]}; the values say "
            f"{words[found.offset]} "
            f"({how}).",
        )


@check_of_weights(
    "zero-point-wraps",
    BROKEN,
    "A zero point has wrapped around",
    effect="GPTQ version 1 stores zero points minus one, and 0 - 1 wraps to the largest code: kernels that "
    "add "
    "one get a zero point beyond the grid, and every weight of the group has the wrong sign.",
    remedy="Export the model as GPTQ version 2 (checkpoint_format gptq_v2).",
)
def wrapped(weight: StoredWeight, parts: Parts, subject: Subject) -> Iterator[Spot]:
    """Look for the largest code among stored zero points of version 1: the zero point that it stands for is
    outside of the grid."""
    settings = subject.quantization
    if weight.kind != GPTQ or _stated(settings) != gptq.V1 or weight.shape is None:
        return
    bits, zeros = weight.settings["bits"], parts.get("qzeros")
    if zeros is None or zeros.ndim != 2 or list(zero_points(weight, parts, subject)):
        return
    try:
        stored = unpack_words(zeros, bits, weight.shape[0])
    except InputError:
        return
    if count := int((stored == (1 << bits) - 1).sum()):
        yield Spot(weight.parts["qzeros"], f"{count:,} of {stored.numel():,} groups.")


# -- dtypes --------------------------------------------------------------------------------------------------


@check(
    "dtype-mix",
    KNOW,
    "Matrices of one kind are stored in different dtypes",
    effect="Loading converts them to one dtype, so the wider ones lose their extra digits; it often means "
    "that "
    "shards of two conversions were put together.",
    remedy="Compare with the original model.",
    kinds=(FOLDER, GGUF),
)
def dtypes(subject: Subject) -> Iterator[Spot]:
    """Compare the dtypes of matrices in floating point whose names differ in numbers only."""
    families: dict[str, dict[str, list[str]]] = {}
    for weight in subject.weights:
        if (
            weight.kind == PLAIN
            and weight.shape
            and len(weight.shape) > 1
            and weight.form in gguf_header.PLAIN
        ):
            family = re.sub(r"\d+", "N", weight.name)
            families.setdefault(family, {}).setdefault(weight.form, []).append(weight.name)
    for family, forms in families.items():
        if len(forms) > 1:
            words = ", ".join(f"{len(names)} in {form}" for form, names in sorted(forms.items()))
            yield Spot(family, f"{words}; {min(forms.values(), key=len)[0]} is one of the fewer.")

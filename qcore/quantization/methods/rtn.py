"""Round to nearest: the scale from the extremes of the group, then each weight to the nearest value of the
grid. Needs no data.

    symmetric     scale = max|w| / (2^(bits−1) − 1)                  code = round(w / scale) + 2^(bits−1)
    asymmetric    scale = (max(w, 0) − min(w, 0)) / (2^bits − 1)     zero_point = round(−min(w, 0) / scale)
    fixed table   scale = max|w|                                     code = index of the value nearest w/scale
    affine        scale = (max(w) − min(w)) / (2^bits − 1)           code = round((w − minimum) / scale)
                  minimum = min(w)
    signed        the weight of the largest magnitude is at the longer end of the grid, whose side the scale's
                  sign chooses: scale = −w / 2^(bits−1), or w divided by the table's largest entry

A K-quant finds scales and minimums like this per group, then quantizes both within super-blocks; its minimums
are 0 or below.

Codes of uniform formats are chosen for the scale *as stored* (rounded to float16, or quantized again), which
costs nothing and removes the error of rounding the scale afterwards. Codes of nf4 and fp4 are chosen for the
exact scale, as QLoRA (arXiv 2305.14314) defines them, so that they are comparable with other
implementations.

On a CPU, native kernels choose the codes (`kernels.rounding`) at the speed of reading the weights from
memory. The code here is the reference, which they match bit for bit, and runs everywhere else.
"""

import torch
from torch.nn.functional import pad

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor, round_minimum, round_scale
from qcore.kernels import rounding
from qcore.quantization.methods import MethodInfo, register

INFO = MethodInfo(
    "rtn",
    "round to nearest (RTN)",
    grids=("even", "fixed"),
    limits="needs a fixed grid",
    work=0.3,
    streamed=2.0,
)

_CHUNK = 1 << 22  # weights per chunk, so that temporaries stay far smaller than the matrix
_TINY = torch.finfo(
    torch.float32
).tiny  # an all-zero group has scale 0; dividing by this instead gives code 0, not NaN


@register(INFO)
def quantize(weight: torch.Tensor, format: Format) -> QuantizedTensor:
    """Quantize `weight` (N, K) to a uniform or fixed-table format. Raise `InputError` for NaN, for scales
    above 65504, and for formats that learn their table."""
    if format.learned:
        raise InputError(
            f"Rounding to nearest needs a fixed table; {format.label} learns its own. Use the method kmeans."
        )
    found = rounding.quantize(weight, format) if rounding.reason_against(weight, format) is None else None
    return reference(weight, format) if found is None else found


def reference(weight: torch.Tensor, format: Format) -> QuantizedTensor:
    """Do the same as `quantize` in plain torch, on any device."""
    rows, columns = weight.shape
    groups = format.groups(columns)
    scale = torch.empty(rows, groups, device=weight.device)
    zero_point = torch.empty_like(scale, dtype=torch.uint8) if format.has_zero_points else None
    minimum = torch.empty_like(scale) if format.affine else None
    offset = minimum if zero_point is None else zero_point
    for part in _chunks(weight):
        scale[part], found = extremes(grouped(weight[part], format.group_size, repeat=format.affine), format)
        if offset is not None and found is not None:
            offset[part] = found
    kept = round_scale(scale, format) if format.rounds_for_stored_scale else scale
    lowest = None if minimum is None else round_minimum(minimum, format)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    for part in _chunks(weight):
        pieces = grouped(weight[part], format.group_size)
        if lowest is not None:
            found = _affine_codes(pieces, kept[part], lowest[part], format)
        elif format.even:
            zero = None if zero_point is None else zero_point[part]
            found = _uniform_codes(pieces, kept[part], zero, format)
        else:
            found = _table_codes(pieces, kept[part], format)
        codes[part] = found.flatten(1)[:, :columns]
    table = None if format.even else format.fixed_on(weight.device)
    return QuantizedTensor.from_codes(format, codes, scale, zero_point, table, minimum)


def grouped(weight: torch.Tensor, group_size: int | None, repeat: bool = False) -> torch.Tensor:
    """View `weight` (N, K) as float32 (N, G, group_size). The last group is padded: with zeros, which do not
    widen the range of a grid that contains 0, or with `repeat` by its last weight, which widens no range."""
    weight = weight.float()
    if group_size is None:
        return weight.unsqueeze(1)
    missing = -weight.shape[1] % group_size
    if missing and repeat:
        weight = torch.cat((weight, weight[:, -1:].expand(-1, missing)), dim=1)
    elif missing:
        weight = pad(weight, (0, missing))
    return weight.unflatten(1, (-1, group_size))


def divisor(scale: torch.Tensor) -> torch.Tensor:
    """Return `scale`, or the smallest normal number of its sign in place of 0: dividing 0 by that gives 0,
    not NaN."""
    return torch.where(scale < 0, scale.clamp_max(-_TINY), scale.clamp_min(_TINY))


def _chunks(weight: torch.Tensor) -> list[slice]:
    step = max(1, _CHUNK // max(1, weight.shape[1]))
    return [slice(start, start + step) for start in range(0, weight.shape[0], step)]


def extremes(groups: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the scale (N, G) and, for asymmetric formats, the zero point or minimum (N, G) from the extremes
    of `groups` (N, G, group_size)."""
    if format.signed:
        extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
        return extreme / -(format.levels // 2 if format.even else format.reach), None
    if format.affine:
        lowest, highest = groups.aminmax(dim=2)
        lowest = lowest.clamp(max=format.highest_minimum)
        return (highest - lowest) / (format.levels - 1), lowest
    if not format.even:
        return groups.abs().amax(dim=2) / format.reach, None
    if format.symmetric:
        return groups.abs().amax(dim=2) / (format.levels // 2 - 1), None
    lowest, highest = groups.aminmax(dim=2)
    lowest, highest = lowest.clamp_max(0), highest.clamp_min(0)
    scale = (highest - lowest).abs() / (format.levels - 1)  # abs: 0, never −0
    return scale, (-lowest / scale.clamp_min(_TINY)).round().clamp(0, format.levels - 1).to(torch.uint8)


def _uniform_codes(
    groups: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, format: Format
) -> torch.Tensor:
    middle = format.levels // 2
    zero = middle if zero_point is None else zero_point.unsqueeze(2)
    return (
        ((groups / divisor(scale).unsqueeze(2)).round_().add_(zero))
        .clamp_(format.lowest, format.levels - 1)
        .to(torch.uint8)
    )


def _affine_codes(
    groups: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor, format: Format
) -> torch.Tensor:
    above = (groups - minimum.unsqueeze(2)) / divisor(scale).unsqueeze(2)
    return above.round_().clamp_(0, format.levels - 1).to(torch.uint8)


def _table_codes(groups: torch.Tensor, scale: torch.Tensor, format: Format) -> torch.Tensor:
    return nearest(groups * (1 / divisor(scale)).unsqueeze(2), format.fixed_on(groups.device))


def nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the index (uint8) of the entry of `table` (16,) nearest to each of `values`; ties go to the
    lower entry."""
    ordered, order = table.sort(stable=True)
    midpoints = (ordered[1:] + ordered[:-1]) / 2
    return order.to(torch.uint8)[torch.bucketize(values.contiguous(), midpoints, out_int32=True)]

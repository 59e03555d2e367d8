"""Round to nearest: the scale from the extremes of the group, then each weight to the nearest value of the
grid. Needs no data.

    symmetric     scale = max|w| / (2^(bits−1) − 1)                  code = round(w / scale) + 2^(bits−1)
    asymmetric    scale = (max(w, 0) − min(w, 0)) / (2^bits − 1)     zero_point = round(−min(w, 0) / scale)
    fixed table   scale = max|w|                                     code = index of the value nearest w/scale

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
from qcore.formats.tensor import QuantizedTensor, round_scale
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
    zero_point = None if format.symmetric else torch.empty_like(scale, dtype=torch.uint8)
    for part in _chunks(weight):
        scale[part], found = _grid(grouped(weight[part], format.group_size), format)
        if zero_point is not None and found is not None:
            zero_point[part] = found
    kept = round_scale(scale, format) if format.rounds_for_stored_scale else scale
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    choose = _uniform_codes if format.even else _table_codes
    for part in _chunks(weight):
        zero = None if zero_point is None else zero_point[part]
        codes[part] = choose(grouped(weight[part], format.group_size), kept[part], zero, format).flatten(1)[
            :, :columns
        ]
    table = None if format.even else _table(format, weight.device)
    return QuantizedTensor.from_codes(format, codes, scale, zero_point, table)


def grouped(weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """View `weight` (N, K) as float32 (N, G, group_size); the last group is padded with zeros, which do not
    widen its range."""
    weight = weight.float()
    if group_size is None:
        return weight.unsqueeze(1)
    missing = -weight.shape[1] % group_size
    return (pad(weight, (0, missing)) if missing else weight).unflatten(1, (-1, group_size))


def _chunks(weight: torch.Tensor) -> list[slice]:
    step = max(1, _CHUNK // max(1, weight.shape[1]))
    return [slice(start, start + step) for start in range(0, weight.shape[0], step)]


def _grid(groups: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the scale (N, G) and, for asymmetric formats, the zero point (N, G) from the extremes of
    `groups` (N, G, group_size)."""
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
        ((groups / scale.clamp_min(_TINY).unsqueeze(2)).round_().add_(zero))
        .clamp_(format.lowest, format.levels - 1)
        .to(torch.uint8)
    )


def _table_codes(
    groups: torch.Tensor, scale: torch.Tensor, _zero: torch.Tensor | None, format: Format
) -> torch.Tensor:
    return nearest(groups * (1 / scale.clamp_min(_TINY)).unsqueeze(2), _table(format, groups.device))


def _table(format: Format, device: torch.device) -> torch.Tensor:
    if format.fixed is None:
        raise ValueError(f"{format.label} has no fixed table")
    return format.fixed.to(device)


def nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the index (uint8) of the entry of `table` (16,) nearest to each of `values`; ties go to the
    lower entry."""
    ordered, order = table.sort(stable=True)
    midpoints = (ordered[1:] + ordered[:-1]) / 2
    return order.to(torch.uint8)[torch.bucketize(values.contiguous(), midpoints, out_int32=True)]

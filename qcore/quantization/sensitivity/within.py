"""The best choice within a `Budget`, in its unit: bits per weight, megabytes, or nats per token."""

from qcore.base.errors import InputError
from qcore.formats.budget import Budget, plain
from qcore.quantization.sensitivity.allocation import Choice, solve
from qcore.quantization.sensitivity.table import Layer


def solve_within(
    budget: Budget, layers: tuple[Layer, ...], fixed_bytes: int, weights: int, kept: int
) -> Choice:
    """Return the best choice within `budget` (multiple-choice knapsack, see `allocation.py`) for a model with
    `fixed_bytes` in quantized tensors of a fixed format, `weights` quantized weights in all, and `kept` bytes
    of other tensors. Raise `InputError` if no choice is within the budget."""
    costs, losses = costs_of(layers)
    least = sum(min(layer) for layer in costs)
    if budget.unit == "kl":
        best = sum(min(layer) for layer in losses)
        if best > budget.amount:
            raise InputError(
                f"The predicted loss is at least {best:.3g} nats per token with these candidates, "
                f"above the requested {plain(budget.amount)}. Request {plain(_up(best))}kl or more."
            )
        return solve(losses, costs, budget.amount)
    if budget.unit == "bpw":
        room, smallest = (
            int(budget.amount * weights / 8 + 1e-6) - fixed_bytes,
            _up(8 * (least + fixed_bytes) / weights),
        )
    else:
        room, smallest = (
            int(budget.amount * 1e6 + 1e-6) - fixed_bytes - kept,
            _up((least + fixed_bytes + kept) / 1e6),
        )
    if room < least:
        raise InputError(
            f"{budget.words} are too few: with every layer in its smallest candidate format, "
            f"this model takes {plain(smallest)}. Request {plain(smallest)}{budget.unit} or more."
        )
    return solve(costs, losses, room)


def _up(value: float) -> float:
    """Return `value` rounded up to about three digits, so that requesting it succeeds."""
    step = (
        10.0 ** (len(str(int(value))) - 4)
        if value >= 1
        else 10.0 ** (int(f"{value:e}".partition("e")[2]) - 2)
    )
    return float(f"{(int(value / step) + 1) * step:.6g}")


def costs_of(layers: tuple[Layer, ...]) -> tuple[list[list[float]], list[list[float]]]:
    """Return bytes and losses per layer and candidate format, as `solve` and `frontier` take them."""
    return [[float(nbytes) for nbytes in layer.nbytes] for layer in layers], [
        list(layer.loss) for layer in layers
    ]

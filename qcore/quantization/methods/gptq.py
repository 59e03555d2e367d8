"""GPTQ: round one column of W at a time, and compensate its error in the columns not yet rounded (arXiv
2210.17323).

With the inputs X of a layer and their Hessian H = 2/n · XᵀX, rounding column j of W to q_j costs

    (w_j − q_j)² / [H⁻¹]_jj

and changes every later column k by

    − (w_j − q_j) · [H⁻¹]_jk / [H⁻¹]_jj

where H⁻¹ is the inverse over the columns not yet rounded. All these inverses follow from one Cholesky factor
of H⁻¹ (step 3 of the algorithm). As in the paper's code, columns are taken in the order of their importance
("activation order"), grids are chosen before ("static groups"), and updates are applied lazily, one block of
columns at a time (step 2), so that most of the work is a matrix product.

Coordinate descent on the same objective then refines the codes, see `descent.py`.
"""

from dataclasses import dataclass

import torch

from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target
from qcore.quantization.calibration import BlockWork
from qcore.quantization.calibration.inputs import Stage
from qcore.quantization.methods import MethodInfo, OneLayer, descent, register, stepwise, without_text
from qcore.quantization.methods import quantize as quantize_alone
from qcore.quantization.methods.grid import Grid, nearest, search

INFO = MethodInfo(
    "gptq",
    "codes by GPTQ and coordinate descent, from calibration text",
    option="gptq",
    needs_text=True,
    wants_drift=True,
    examples=(
        "int4-g64-gptq",
        "int3-g64-gptq",
        "nf4-g32-dq-gptq",
        "kmeans4-g32-dq-gptq",
        "rot-int4-g64-gptq",
    ),
)

DAMPING = 0.01
DRIFT = 0.5


def damped(hessian: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Return a copy of the Hessian (K, K) with `damping` times its mean diagonal added to the diagonal, and 1
    on the diagonal of inputs that were always 0."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal.add_(damping * diagonal[~dead].mean() if not dead.all() else 0)
    diagonal[dead] = 1
    return hessian


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U (K, K) with H⁻¹ = Uᵀ·U; row j divided by U_jj holds the updates of step j
    (step 3 of the algorithm)."""
    flipped = torch.linalg.cholesky(
        hessian.flip(0, 1)
    )  # H = Rᵀ·R reversed, so H⁻¹ needs one triangular inverse and no second factor
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    return torch.linalg.solve_triangular(flipped, eye, upper=False).flip(0, 1)


def solve(
    weight: torch.Tensor, grid: Grid, hessian: torch.Tensor, order: torch.Tensor | None = None
) -> torch.Tensor:
    """Return GPTQ's codes (K, N), as floats, for `weight` (K, N) under the damped `hessian` (K, K) (algorithm
    1 of the paper).

    `order` (K,) is the order of the inputs (default: largest diagonal first). Raise
    `torch.linalg.LinAlgError` if the Hessian is not positive definite.
    """
    order = hessian.diagonal().argsort(descending=True) if order is None else order
    factor = inverse_factor(hessian[order][:, order])
    codes = stepwise.choose(grid, factor, weight[order], factor.diagonal().reciprocal(), order=order)
    result = torch.empty_like(codes)
    result[order] = codes
    return result


@dataclass(frozen=True)
class Solution:
    """Codes (K, N) on a grid, and the weight `goal` (K, N) that they approximate."""

    grid: Grid
    codes: torch.Tensor
    goal: torch.Tensor

    @property
    def tensor(self) -> QuantizedTensor:
        """The quantized tensor."""
        return self.grid.tensor(self.codes)


def quantize(
    weights: list[torch.Tensor],
    format: Format,
    hessian: torch.Tensor,
    drift: torch.Tensor | None = None,
    rounds: int = descent.ROUNDS,
) -> list[Solution]:
    """Quantize matrices (N, K) that share the inputs with this `hessian` (K, K) and `drift` (K, K) (see
    `calibration.inputs`): search the grids, choose codes with GPTQ, then refine them in `rounds` of
    coordinate descent."""
    importance = hessian.diagonal().clone()
    hessian = damped(hessian)
    sizes = [len(weight) for weight in weights]
    goal = torch.cat([weight.float() for weight in weights])
    if drift is not None:
        goal = goal + corrected(goal, hessian, drift)
    goals = goal.split(sizes)
    grids = [search(goal, format, importance) for goal in goals]
    goal = goal.T.contiguous()
    codes = solve(goal, descent.stack(grids), hessian)
    if rounds:
        codes, grids = descent.refine(goal, codes, grids, hessian, rounds)
    return [
        Solution(*each)
        for each in zip(grids, codes.split(sizes, dim=1), goal.split(sizes, dim=1), strict=True)
    ]


def corrected(
    weight: torch.Tensor, hessian: torch.Tensor, drift: torch.Tensor, share: float = DRIFT
) -> torch.Tensor:
    """Return the correction (N, K) to `weight` (N, K), times `share`, with which its output for the quantized
    model's inputs is the least squares fit of its output in the unquantized model."""
    return share * torch.cholesky_solve((weight @ drift).T, torch.linalg.cholesky(hessian)).T


def rounded(weights: list[torch.Tensor], format: Format, hessian: torch.Tensor) -> list[torch.Tensor]:
    """Return the dequantized matrices (N, K) of a single layer, by GPTQ without coordinate descent."""
    return [solution.tensor.dequantize() for solution in quantize(weights, format, hessian, rounds=0)]


class Expected:
    """Estimate `rounded` for many formats; the factor of the `hessian` (K, K) is computed once.

    With δ_j the rounding error of input j after the updates of all earlier steps,

        Q − W = −Uᵀ (δ_j / U_jj)

    The distribution of δ hardly depends on those updates, so δ is taken from rounding the original weights.
    That is the same sum without the sequential steps, about ten times faster.
    """

    def __init__(self, hessian: torch.Tensor):
        self.hessian = hessian
        self._factor: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, weights: list[torch.Tensor], format: Format) -> list[torch.Tensor]:
        """Return the estimated matrices (N, K) of `weights` in `format`, float32."""
        return [weight + self._left(weight.float(), format) for weight in weights]

    def _left(self, weight: torch.Tensor, format: Format) -> torch.Tensor:
        if self._factor is None:
            hessian = damped(self.hessian)
            order = hessian.diagonal().argsort(descending=True)
            factor = inverse_factor(hessian[order][:, order])
            self._factor = order, factor / factor.diagonal().unsqueeze(1)
        order, factor = self._factor
        grid = search(weight, format, self.hessian.diagonal())
        transposed = weight.T.contiguous()
        error = grid.values(nearest(transposed, grid)).sub_(transposed)
        left = torch.empty_like(error)
        left[order] = factor.T @ error[order]
        return left.T


LAYER = OneLayer(rounded, Expected)


@register(INFO, layer=LAYER)
def choose(work: BlockWork) -> dict[str, Solution]:
    """Quantize a block stage by stage, and return the solution per linear layer. The inputs of a stage come
    from the quantized stages before it, so each stage compensates for the error of the earlier ones."""
    found: dict[str, Solution] = {}
    linear = [stage for stage in work.stages if not stage.targets[0].fused]
    for stage in linear:
        work.step(names([stage]))
        (moments,) = work.moments([stage])
        for format in dict.fromkeys(target.format for target in stage.targets):
            alike = [target for target in stage.targets if target.format == format]
            solutions = quantize(
                [work.matrices(target)[0] for target in alike], format, moments.hessian, moments.drift
            )
            for target, solution in zip(alike, solutions, strict=True):
                found[target.name] = solution
                work.put(target, [solution.tensor])
    for stage in work.stages:
        if stage not in linear:
            work.step(names([stage]))
            _experts(work, stage.targets[0])
    return found


def names(stages: list[Stage]) -> str:
    """Return the names of the stages' layers, for progress messages."""
    return ", ".join(target.module.rpartition(".")[2] for stage in stages for target in stage.targets)


def _experts(work: BlockWork, target: Target) -> None:
    tensors, seen = [], work.moments_of_experts(target)
    for matrix, moments in zip(work.matrices(target), seen, strict=True):
        if moments.tokens:
            tensors.append(quantize([matrix], target.format, moments.hessian)[0].tensor)
        else:
            tensors.append(quantize_alone(matrix, target.format, target.format.method))
    work.note_unreached(target, seen, f"whose codes were {without_text(target.format.method)}")
    work.put(target, tensors)

"""A layer's weights as a method would round them, the layer being taken by itself: what each candidate format
costs is seen on these.

Methods that look at a weight alone are simply asked. GPTQ visits the inputs one by one and lets later ones
make up for earlier ones; in the notation of `methods/gptq.py`, with U the Cholesky factor of H⁻¹ and δ_j the
rounding error of input j when its turn has come,

    Q − W = −Uᵀ (δ_j / U_jj)

How δ is distributed hardly depends on what the visits before have added, so `expected` takes the errors of
rounding the weights as they are in its place: the same sum for all formats from one factor, without a visit
to any input, some ten times faster. `rounded` makes the visits; it is what the measured divergences are of.
Learned rounding starts from GPTQ's answer and is treated alike.
"""

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.quantization import methods

GPTQ_LIKE = ("gptq", "signround", "distilled")
SEEING = ("awq", *GPTQ_LIKE)
"""Methods that round by what a layer is given."""
METHODS = ("rtn", "hqq", *SEEING)


def check_method(method: str) -> None:
    """Raise `InputError` for a method whose rounding of one layer is not known here."""
    if method not in METHODS:
        raise InputError(
            f"Formats can be chosen layer by layer with the methods {', '.join(METHODS)}; {method} is none of them."
        )


def rounded(
    method: str, weights: list[torch.Tensor], format: Format, hessian: torch.Tensor | None
) -> list[torch.Tensor]:
    """The matrices (N, K) of `weights`, which share the inputs with that `hessian` (K, K), in `format`,
    float32. Methods that look at weights alone need no Hessian."""
    from qcore.quantization.methods import gptq

    if method not in GPTQ_LIKE:
        return _alone(method, weights, format, hessian)
    return [solution.tensor.dequantize() for solution in gptq.quantize(weights, format, hessian, rounds=0)]


class Expected:
    """The same for many formats, cheaply: what depends on the inputs' `hessian` (K, K) alone is worked out
    once."""

    def __init__(self, method: str, hessian: torch.Tensor | None):
        check_method(method)
        self.method, self.hessian = method, hessian
        self._factor: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, weights: list[torch.Tensor], format: Format) -> list[torch.Tensor]:
        """`rounded`, or its expectation."""
        if self.method not in GPTQ_LIKE:
            return _alone(self.method, weights, format, self.hessian)
        return [weight + self._left(weight.float(), format) for weight in weights]

    def _left(self, weight: torch.Tensor, format: Format) -> torch.Tensor:
        from qcore.quantization.methods import gptq
        from qcore.quantization.methods.grid import nearest, search

        if self._factor is None:
            hessian = gptq.damped(self.hessian)
            order = hessian.diagonal().argsort(descending=True)
            factor = gptq.inverse_factor(hessian[order][:, order])
            self._factor = order, factor / factor.diagonal().unsqueeze(1)
        order, factor = self._factor
        grid = search(weight, format, self.hessian.diagonal())
        transposed = weight.T.contiguous()
        error = grid.values(nearest(transposed, grid)).sub_(transposed)
        left = torch.empty_like(error)
        left[order] = factor.T @ error[order]
        return left.T


def _alone(
    method: str, weights: list[torch.Tensor], format: Format, hessian: torch.Tensor | None
) -> list[torch.Tensor]:
    from qcore.quantization.methods.awq import clipped

    if method == "awq":
        return [clipped(weight, format, hessian.diagonal()).dequantize() for weight in weights]
    return [methods.quantize(weight.float().contiguous(), format, method).dequantize() for weight in weights]

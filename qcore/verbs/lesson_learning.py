"""What learning adds: codes trained by gradients, pruned weights, and the full distribution of a teacher."""

import torch

from qcore.formats.packing import packed_width
from qcore.formats.sparse import break_even, sparse_bytes
from qcore.formats.uniform import Uniform
from qcore.pruning.scores import keep
from qcore.quantization.methods import quantize
from qcore.training.fake import Full
from qcore.training.teacher import soft_loss
from qcore.verbs.lesson_types import Learned, Pruned, Taught
from qcore.verbs.lesson_weights import relative_error

ROWS = 128  # of the weight are trained: enough to see the effect
TOKENS, RATE = 256, 1e-2


def learn(weight: torch.Tensor, format: Uniform, steps: int, seed: int = 0) -> Learned:
    """Train the codes of the weight's first rows for `steps` straight-through steps, so that the layer's
    output for random inputs of unequal channels is preserved. Scales are trained with them."""
    weight = weight[:ROWS]
    generator = torch.Generator().manual_seed(seed)
    width = weight.shape[1]
    mix = (
        torch.randn(width, max(1, width // 4), generator=generator) / max(1, width // 4) ** 0.5
    )  # inputs are correlated, as real ones are
    x = torch.randn(TOKENS, max(1, width // 4), generator=generator) @ mix.T + 0.3 * torch.randn(
        TOKENS, width, generator=generator
    )
    wanted = x @ weight.T
    stored = quantize(weight, format, "rtn")
    layer = Full(stored, weight, learn_scales=True)
    layer.requires_grad_(True)
    optimizer = torch.optim.Adam(
        [
            {"params": [layer.latent], "lr": RATE * float(weight.std())},
            {"params": [layer.gain], "lr": RATE / 10},
        ]
    )
    best, best_codes, curve = relative_error(wanted, x @ stored.dequantize().T), stored.unpacked_codes(), []
    start = best
    for _ in range(steps):
        with torch.enable_grad():
            loss = (x @ layer.weight().T - wanted).square().mean() / wanted.square().mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        found = layer.result()
        error = relative_error(wanted, x @ found.dequantize().T)
        if error < best:
            best, best_codes = error, found.unpacked_codes()
        curve.append(best)
    return Learned(
        start, tuple(curve) or (start,), float((best_codes != stored.unpacked_codes()).float().mean())
    )


def prune(weight: torch.Tensor, method: str, amount: float, bits: int = 16, shown: int = 20_000) -> Pruned:
    """Remove the share `amount` of the weight (N, K) by `method` ("magnitude", or "2:4", which removes two of
    every four weights), and store it in `bits` bits per weight, densely or with one mask bit per weight."""
    kept = keep(weight, None, method, amount)
    zeros = 1 - float(kept.float().mean())
    rows, columns = weight.shape
    dense = rows * (packed_width(columns, bits) if bits <= 8 else columns * bits // 8)
    count = weight.numel()
    step = max(1, count // shown)
    flat, stays = weight.abs().flatten()[::step], kept.flatten()[::step]
    return Pruned(
        zeros,
        relative_error(weight, weight * kept),
        8 * dense / count,
        8 * sparse_bytes(rows, columns, int(kept.sum()), bits) / count,
        break_even(bits),
        tuple(flat[stays].tolist()),
        tuple(flat[~stays].tolist()),
    )


def taught(teacher: torch.Tensor, student: torch.Tensor, temperature: float, shown: int = 10) -> Taught:
    """Compare teacher's and student's logits (V,) of one next token, softened by `temperature`."""
    soft, own = (logits.float().div(temperature).softmax(-1) for logits in (teacher, student))
    top = soft.topk(min(shown, len(soft))).indices
    entropy = float(-(soft * soft.clamp_min(1e-30).log()).sum())
    loss = float(soft_loss(teacher.float()[None, None], student.float()[None, None], temperature))
    return Taught(
        tuple(top.tolist()),
        tuple(soft[top].tolist()),
        tuple(own[top].tolist()),
        1 - float(soft[top].sum()),
        entropy,
        loss,
    )

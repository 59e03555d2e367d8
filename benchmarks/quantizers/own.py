"""qcore's recipes, and the libraries that qcore adapts (bitsandbytes, quanto), exactly as the app runs them
by the same name."""

from benchmarks.quantizers import Job, Stored, linears
from qcore import recipes
from qcore.formats.mixture import Mixture
from qcore.quantization import convert


def quantize(job: Job) -> Stored:
    """Quantize by the recipe `job.item`; "fp32" counts all weights of the same layers at 32 bits."""
    model, recipe = job.loaded.model, recipes.parse(job.item)
    if isinstance(recipe.weights, Mixture):  # which would quantize the head as well
        recipe = recipe.with_modules(head="keep", embeddings="keep")
    if job.layers is not None:
        wanted = linears(model, job.layers)
        others = [name.removesuffix(".weight") for name in linears(model) if name not in wanted]
        recipe = recipe.with_modules(skip=tuple(others))
    text = job.calibration() if recipe.calibrated else None
    ledger = convert.quantize(
        model,
        recipe,
        progress=lambda done, total, name: job.say(f"{done} of {total} {name}"),
        calibration=text,
    )
    rows = ledger.quantized or [row for row in ledger.rows if row.bytes_after]
    return Stored(
        nbytes=sum(row.bytes_after for row in rows),
        weights=sum(row.weights for row in rows),
        layers=frozenset(row.name for row in ledger.quantized),
        details={"recipe": recipe.to_dict()},
    )

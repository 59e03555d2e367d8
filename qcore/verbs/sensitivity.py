"""`sensitivity`: the dependence of one model's predictions on the precision of each layer, predicted from
gradients and optionally measured.

Tables are kept in the cache folder (see `qcore.quantization.sensitivity.store`) and reused for the same
request. Measured divergences are kept block by block, so a stopped measurement resumes after its last block.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn

FORMATS = ("int3-g64", "int3-g32", "int4-g128", "int4-g64", "int4-g32", "int8")
LIMITS = {"tokens": (64, 1_000_000), "measure_tokens": (0, 4096)}
MOST_FORMATS = 32  # the table has a column per format
WINDOW = 256  # tokens per window of a measured divergence, whose logits stay in memory
READ = 512  # tokens per window of the prediction


@dataclass(frozen=True, kw_only=True)
class Request:
    """`formats` are names such as "int4-g64"; `method` rounds to them. The prediction reads `tokens` of the
    calibration text `text` (None: the packaged one) on `device`; with `measure_tokens` above 0 the divergence
    of each layer and format is measured over that many tokens.

    Raise `InputError` naming the unusable field.
    """

    model: str
    formats: tuple[str, ...] = FORMATS
    method: str = "rtn"
    text: str | None = None
    tokens: int = 2048
    measure_tokens: int = 0
    revision: str | None = None
    device: str = "cpu"

    def __post_init__(self):
        object.__setattr__(self, "formats", tuple(dict.fromkeys(self.formats)))
        if not self.model.strip():
            raise InputError("No model was given; name a folder, a hub id, or smollm2-135m.")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name} is {value!r}, but it must be a whole number from {low} to {high}.")
        if not self.formats:
            raise InputError("No format was given; try int3-g64,int4-g64,int8.")
        if len(self.formats) > MOST_FORMATS:
            number = len(self.formats)
            raise InputError(f"{number:,} formats were given, but at most {MOST_FORMATS} are allowed.")
        for name in self.formats:
            _format(name)

    @property
    def candidates(self) -> tuple:
        """Return the parsed formats, from the smallest to the largest."""
        return tuple(sorted((_format(name) for name in self.formats), key=_bits))


def run(request: Request, progress: Progress) -> tuple[str, object]:
    """Return (key, `qcore.quantization.sensitivity.Sensitivities`) of the request, from the store where
    available. Wait for the machine's turn.

    Raise `InputError` for an unusable model or text, or a method that does not round layers one by one, and
    `UnavailableError` for a device that is not here.
    """
    from qcore.layers.select import select
    from qcore.quantization.calibration import load_calibration
    from qcore.quantization.calibration.text import TOKENS, calibration_text
    from qcore.quantization.sensitivity.choosing import find_or_predict
    from qcore.quantization.sensitivity.rounding import check_method
    from qcore.recipes import parse
    from qcore.verbs.checks import check_device
    from qcore.verbs.prepare import find_original, load

    check_device(request.device)
    check_method(request.method)
    calibration_text(request.text)
    checkpoint = find_original(request.model, request.revision, progress=progress)
    with heavy_turn(progress):
        loaded = load(checkpoint, device=request.device, window=READ, progress=progress)
        calibration = load_calibration(request.text, loaded.tokenizer, tokens=max(2 * request.tokens, TOKENS))
        targets = list(select(loaded.model, parse("int4-g64")).targets)
        table, store = find_or_predict(
            loaded.model,
            targets,
            request.candidates,
            request.method,
            calibration,
            progress,
            identity=checkpoint.digest,
            stamp=checkpoint.stamp,
            about={"model": checkpoint.name},
            tokens=request.tokens,
        )
        if request.measure_tokens and not table.measured:
            table = _measured(loaded.model, targets, request, calibration, table, store, progress)
    if store is None:
        raise ValueError(f"{checkpoint.name} has no digest to keep its table under")
    return store.key, table


def _measured(model, targets, request: Request, calibration, table, store, progress: Progress):
    from qcore.quantization.sensitivity.measured import measure
    from qcore.quantization.sensitivity.proxy import split

    part, given = split(calibration, request.method, request.tokens)
    window = min(WINDOW, part.ids.shape[1])
    ids = part.ids[: max(1, request.measure_tokens // window), :window]
    known, began = store.parts(), time.perf_counter()
    number = len(list((store.path / "kl").glob("*.json")))
    for block in measure(
        model,
        targets,
        list(request.candidates),
        request.method,
        given or part,
        ids,
        progress,
        known=set(known),
    ):
        store.write_part(number, block)
        known, number = known | block, number + 1
    about = {
        "measured_tokens": ids.numel(),
        "measured_window": window,
        "measured_seconds": time.perf_counter() - began,
    }
    table = replace(table.with_kl(known), conditions=table.conditions | about)
    store.write(table)
    store.remove_parts()
    return table


def _bits(format) -> float:
    return 8 * format.nbytes(4096, 4096) / 4096**2


def _format(name: str):
    from qcore.formats.kinds import Format
    from qcore.recipes import parse

    recipe = parse(name)
    if not isinstance(recipe.weights, Format) or recipe.method != "rtn" or recipe.prepare != "none":
        raise InputError(
            f"{name} is not a plain format. Choose formats such as int3-g64, int4-g32 or int8, and name the "
            "method separately."
        )
    return recipe.weights

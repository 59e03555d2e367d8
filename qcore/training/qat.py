"""Quantization-aware training: a model quantized by a recipe is trained, in its quantized form, to predict
what the unquantized model predicts.

The light form trains scales and norms with fixed codes (as the second phase of EfficientQAT does, arXiv
2407.11062); its memory is that of inference plus autograd's buffers, and minutes on a small machine suffice
for a gain. The full form trains the latent weights behind the codes (LLM-QAT, arXiv 2305.17888), with fixed
or learned scales (LSQ, arXiv 1902.08153). Either ends as an ordinary quantized model of the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, cast

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.formats.budget import Budget
from qcore.library import Loaded, safetensors
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.text import TOKENS
from qcore.recipes import METHODS, Engine, Recipe
from qcore.recipes.ledger import Ledger
from qcore.training import corpus, judging
from qcore.training.attach import TrainableSet, attach, detach, groups
from qcore.training.checkpoint import TrainingState
from qcore.training.loop import History, Problem, Schedule, train
from qcore.training.teacher import Teacher, next_loss, soft_loss

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

RATES = {"light": 5e-3, "full": 3e-2}
# factor of the rate after calibration: the codes are near the optimum, larger steps first lead away
CALM = 0.4
LIMITS = {"tokens": (32, 10**9), "window": (8, 1 << 20)}


@dataclass(frozen=True, kw_only=True)
class Qat:
    """`loss` is "kl" (the unquantized model is the teacher) or "next" (the next token of the text is the
    target). `text` and `validation` are files; without them, the packaged calibration text and its end.
    `rate` None selects the default. Raise `InputError` naming the invalid field."""

    form: TrainableSet = field(default_factory=TrainableSet)
    loss: str = "kl"
    text: str | None = None
    validation: str | None = None
    tokens: int = 262144
    window: int = 256
    rate: float | None = None
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self):
        if self.loss not in ("kl", "next"):
            raise InputError(
                f"loss is {self.loss!r}, but it must be kl (the unquantized model teaches) "
                "or next (the text does)."
            )
        check_common(self.tokens, self.window, self.rate)

    def rate_for(self, recipe: Recipe) -> float:
        """Return the learning rate."""
        usual = RATES[self.form.name] * (CALM if recipe.calibrated else 1)
        return usual if self.rate is None else self.rate


def check_common(tokens: int, window: int, rate: float | None) -> None:
    """Raise `InputError` for values that no training accepts."""
    for name, value in (("tokens", tokens), ("window", window)):
        low, high = LIMITS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{name} is {value!r}, but it must be a whole number from {low:,} to {high:,}.")
    if rate is not None and not 0 < rate <= 1:
        raise InputError(f"rate is {rate!r}, but it must be more than 0 and at most 1.")


def check_recipe(recipe: Recipe) -> None:
    """Raise `InputError` if models of `recipe` have nothing to train."""
    if isinstance(recipe.weights, Engine):
        raise InputError(
            f"{recipe.name} is another library's format, which qcore cannot train. Choose one of "
            "qcore's own formats, such as int3-g64."
        )
    if not recipe.quantizes:
        raise InputError(
            f"{recipe.name} keeps floating point, so there is nothing to train. Choose a "
            "recipe such as int3-g64."
        )


def run(
    teacher: Loaded,
    recipe: Recipe,
    options: Qat,
    quantized: Callable[[Calibration], Loaded],
    progress: Progress,
    *,
    device: str = "cpu",
    watch: Callable[[History], None] | None = None,
) -> tuple[Loaded, History, TrainingState]:
    """Train the model of `teacher` in the form of `recipe`. `quantized` returns the student, quantized by the
    recipe with a part of the training text.

    Return the student, ready to be saved, with the history, and the stored state: remove it once the student
    is saved. Started again with the same arguments after a kill, the training resumes. Raise `InputError` for
    recipes and texts that cannot be used, `RunError` if the training diverges.
    """
    check_recipe(recipe)
    checkpoint = teacher.checkpoint
    words = corpus.load(
        options.text, options.validation, teacher.tokenizer, tokens=options.tokens, window=options.window
    )
    identity = {
        "model": [checkpoint.digest, checkpoint.stamp],
        "recipe": recipe.to_dict(),
        "options": asdict(options),
        "text": words.record["text"],
    }
    kept = TrainingState({"kind": "qat", **identity})
    student, ledger = _begin(recipe, words, quantized, kept)
    cast("nn.Module", student).to(device)
    folds = METHODS[recipe.method].folds
    leans = recipe.prepare == "none" and not folds and not isinstance(recipe.weights, Budget)
    attach(student, options.form, teacher.model if options.form.name == "full" and leans else None)
    wise = Teacher(teacher.model)
    windows = words.train.to(device)

    def loss(model, numbers, ids):
        logits = model(input_ids=ids, use_cache=False).logits
        return (
            soft_loss(wise.logits(numbers, ids), logits) if options.loss == "kl" else next_loss(ids, logits)
        )

    rate, judge = options.rate_for(recipe), judging.judge(wise, words.held_out.to(device), options.loss)
    problem = Problem(student, groups(student, rate), windows, loss, judge)
    history = train(problem, options.schedule, kept, progress, device=device, watch=watch)
    detach(student)
    about = {"kind": "qat", **asdict(options), "rate": rate, "history": history.record()}
    ledger = replace(ledger, calibration=words.record, training=about)
    return Loaded(student, teacher.tokenizer, checkpoint, recipe, ledger), history, kept


def _begin(
    recipe: Recipe, words: corpus.Texts, quantized: Callable[[Calibration], Loaded], kept: TrainingState
) -> tuple[PreTrainedModel, Ledger]:
    """Return the initial model and its ledger. A calibrated one, which takes long, is stored for a resumed
    run."""
    if kept.begin.is_dir():
        model, ledger, _ = safetensors.load(kept.begin)
        return model, ledger
    found = quantized(words.source.part(TOKENS))
    if found.ledger is None:
        raise ValueError("a quantized model has a ledger")
    if recipe.calibrated:
        safetensors.save(found.model, None, recipe, found.ledger, kept.begin)
    return found.model, found.ledger

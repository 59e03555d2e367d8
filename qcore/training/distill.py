"""Distillation: a smaller model, made from parts of a larger one, learns the larger model's predictions.

    loss = T² · KL(teacher || student) at temperature T  (Hinton et al., arXiv 1503.02531)
         + h · mean over kept layers of |student − teacher|² / |teacher|²     each layer's output, if h > 0

The student starts from evenly spaced layers of the teacher (as DistilBERT does, arXiv 1910.01108), or from
those that change the hidden states most, optionally with narrower MLPs. Embedding and head are
the teacher's. The student is saved as an ordinary model, which can then be quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.library import Loaded
from qcore.pruning.structured import Cut, cut, layer_influence, with_layers
from qcore.quantization.calibration.blocks import Blocks
from qcore.training import corpus, judging
from qcore.training.checkpoint import TrainingState
from qcore.training.loop import History, Problem, Schedule, train
from qcore.training.qat import check_common
from qcore.training.teacher import Teacher, soft_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RATE = 5e-4
SCORED = 8  # windows on which layers and neurons are scored


@dataclass(frozen=True, kw_only=True)
class Distill:
    """A student of `layers` layers, chosen by `keep` ("even" or "influence"), with a share of `neurons`
    pruned from each MLP if given.

    `temperature` softens both distributions; `hidden` is the weight of the loss of hidden states. The rest as
    in `Qat`. Raise `InputError` for values out of range.
    """

    layers: int
    keep: str = "even"
    neurons: float | None = None
    temperature: float = 1.0
    hidden: float = 0.0
    text: str | None = None
    validation: str | None = None
    tokens: int = 262144
    window: int = 256
    rate: float | None = None
    schedule: Schedule = field(default_factory=lambda: Schedule(batch=2))

    def __post_init__(self):
        check_common(self.tokens, self.window, self.rate)
        if self.keep not in ("even", "influence"):
            raise InputError(f"keep is {self.keep!r}, but it must be even or influence.")
        if isinstance(self.layers, bool) or not isinstance(self.layers, int) or self.layers < 1:
            raise InputError(f"layers is {self.layers!r}, but it must be a whole number of at least 1.")
        if not 0.1 <= self.temperature <= 100:
            raise InputError(f"temperature is {self.temperature!r}, but it must be from 0.1 to 100.")
        if not 0 <= self.hidden <= 1000:
            raise InputError(
                f"hidden is {self.hidden!r}, but it must be from 0 to 1000: the weight of "
                "the loss of hidden states."
            )
        if self.neurons is not None:
            Cut("neurons", self.neurons)

    @property
    def used_rate(self) -> float:
        """Return the learning rate."""
        return RATE if self.rate is None else self.rate


def evenly(total: int, count: int) -> list[int]:
    """Return `count` of `total` layers at even distances, including the first and the last (only the first if
    `count` is 1)."""
    return [0] if count == 1 else [round(i * (total - 1) / (count - 1)) for i in range(count)]


def run(
    teacher: Loaded,
    options: Distill,
    progress: Progress,
    *,
    device: str = "cpu",
    watch: Callable[[History], None] | None = None,
) -> tuple[Loaded, dict, TrainingState]:
    """Train a student of the model of `teacher`. Return the student, the record of its training, and the
    stored state, to be removed once the student is saved. Started again with the same arguments after a kill,
    the training resumes. Raise `InputError` and `RunError` as `qat.run` does."""
    checkpoint = teacher.checkpoint
    words = corpus.load(
        options.text, options.validation, teacher.tokenizer, tokens=options.tokens, window=options.window
    )
    kept = TrainingState(
        {
            "kind": "distill",
            "model": [checkpoint.digest, checkpoint.stamp],
            "options": asdict(options),
            "text": words.record["text"],
        }
    )
    student, layers = begin(teacher.model, options, words.train[:SCORED].to(device), progress)
    body = Blocks(student).modules
    for parameter in body.parameters():
        parameter.requires_grad_(True)
    wise, windows = Teacher(teacher.model), words.train.to(device)

    def loss(model: nn.Module, numbers: list[int], ids: torch.Tensor) -> torch.Tensor:
        if not options.hidden:
            return soft_loss(
                wise.logits(numbers, ids), model(input_ids=ids, use_cache=False).logits, options.temperature
            )
        made = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        soft = soft_loss(wise.logits(numbers, ids), made.logits, options.temperature)
        return soft + options.hidden * hidden_loss(wise.hidden(ids), list(made.hidden_states), layers)

    judge = judging.judge(wise, words.held_out.to(device), "kl")
    problem = Problem(
        student, [{"params": list(body.parameters()), "lr": options.used_rate}], windows, loss, judge
    )
    history = train(problem, options.schedule, kept, progress, device=device, watch=watch)
    student.requires_grad_(False).eval()
    about = {
        "kind": "distill",
        "from": checkpoint.origin,
        "options": asdict(options),
        "rate": options.used_rate,
        "kept_layers": layers,
        "calibration": words.record,
        "history": history.record(),
        "trained_seconds": history.seconds,
        "trained_tokens": history.tokens,
        "device": device,
    }
    return Loaded(student, teacher.tokenizer, checkpoint), about, kept


def begin(
    model: PreTrainedModel, options: Distill, ids: torch.Tensor, progress: Progress
) -> tuple[PreTrainedModel, list[int]]:
    """Return the untrained student, and the teacher's layers that it has. Raise `InputError` if the teacher
    has too few layers."""
    total = len(Blocks(model))
    if options.layers > total or (options.layers == total and options.neurons is None):
        raise InputError(
            f"The model has {total} layers, so a student of {options.layers} is no "
            "smaller. Choose fewer layers."
        )
    layers = evenly(total, options.layers)
    if options.keep == "influence" and options.layers < total:
        influence = layer_influence(model, ids, progress)
        layers = sorted(sorted(range(total), key=lambda i: -influence[i])[: options.layers])
    student = with_layers(model, layers)
    if options.neurons is not None:
        student, _ = cut(student, Cut("neurons", options.neurons), ids, progress)
    for parameter in student.parameters():  # the teacher keeps its own
        if parameter is not student.get_input_embeddings().weight:
            parameter.data = parameter.data.clone()
    return student, layers


def hidden_loss(teacher: list[torch.Tensor], student: list[torch.Tensor], layers: list[int]) -> torch.Tensor:
    """Return the mean over the student's layers of |student − teacher|² / |teacher|², token by token; lists
    of (B, T, H) begin with the embedding's output. The last entry of either follows the final norm, so the
    last layers are compared there."""
    losses = []
    for place, layer in enumerate(layers):
        wanted, made = teacher[layer + 1].float(), student[place + 1].float()
        if (layer + 2 == len(teacher)) == (
            place + 2 == len(student)
        ):  # both after the final norm, or neither
            losses.append(
                ((made - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)).mean()
            )
    return torch.stack(losses).mean() if losses else student[0].new_zeros(())

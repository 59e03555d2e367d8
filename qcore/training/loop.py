"""The loop that quantization-aware training and distillation share: steps through `accelerate`, a schedule,
validation, early stopping.

A step reads `batch` windows. The learning rate rises over the first twentieth of the run and then falls along
a cosine to nearly 0; progress is counted in steps or, with a time limit, in time. Validation happens at the
beginning and then at equal intervals. The result is the model with the best validation loss; when `patience`
validations in a row were worse than the best, the run ends.

The order of windows depends only on the seed and the epoch, so a run resumed after a kill takes the same
steps as an uninterrupted one (with a time limit: as many as fit into the remaining time).

On a processor with bfloat16 instructions, steps compute in mixed precision; trained parameters and validation
are float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn

from qcore.base.errors import InputError, RunError
from qcore.base.progress import Progress
from qcore.kernels.precision import mixed
from qcore.training.checkpoint import TrainingState

WARM = 0.05  # share of the run over which the learning rate rises
LOWEST = 0.02  # share of the rate at the end
CLIP = 1.0  # largest norm of the gradients
SAVE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length and speed of the training. `minutes` replaces `steps` if given. `patience` counts validations.

    Raise `InputError` naming the field that is out of range.
    """

    steps: int = 200
    minutes: float | None = None
    batch: int = 1
    validations: int = 8
    patience: int = 3
    seed: int = 0

    LIMITS = {
        "steps": (1, 10_000_000),
        "batch": (1, 4096),
        "validations": (1, 1000),
        "patience": (1, 1000),
        "seed": (0, 2**31 - 1),
    }

    def __post_init__(self):
        for name, (low, high) in self.LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name} is {value!r}, but it must be a whole number from {low} to {high}.")
        if self.minutes is not None and not 0 < self.minutes <= 100_000:
            raise InputError(f"minutes is {self.minutes!r}, but it must be more than 0 and at most 100,000.")

    def share(self, step: int, seconds: float) -> float:
        """Return the progress of the run, 0 … 1, after `step` steps and `seconds`."""
        return min(1.0, step / self.steps if self.minutes is None else seconds / (60 * self.minutes))

    def rate(self, share: float) -> float:
        """Return the factor of the learning rate, 0 … 1."""
        if share < WARM:
            return max(LOWEST, share / WARM)
        return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * (share - WARM) / (1 - WARM)))


@dataclass
class History:
    """The course of a training: `curve` [step, tokens, seconds, loss] of each step, `validations` [step,
    loss, perplexity], and why the run ended."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    validations: list[list[float]] = field(default_factory=list)
    best_step: int = 0
    ended: str = ""

    @property
    def best(self) -> float:
        """Return the lowest validation loss so far."""
        return min((each[1] for each in self.validations), default=math.inf)

    def record(self) -> dict:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Problem:
    """The training objective. `loss` returns the student's loss on windows `ids` (B, T) with indices
    `numbers`, with gradients; `judge` returns (loss, perplexity) on the validation text, without."""

    student: nn.Module
    groups: list[dict]
    windows: torch.Tensor
    loss: Callable[[nn.Module, list[int], torch.Tensor], torch.Tensor]
    judge: Callable[[nn.Module], tuple[float, float]]


def train(
    problem: Problem,
    schedule: Schedule,
    kept: TrainingState,
    progress: Progress,
    *,
    device: str = "cpu",
    watch: Callable[[History], None] | None = None,
) -> History:
    """Train the student in place, and leave it with the parameters of the best validation.

    `watch` gets the history after each step. Raise `RunError` if the loss is not a finite number.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    optimizer = torch.optim.AdamW(problem.groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    base = [group["lr"] for group in optimizer.param_groups]
    parameters = {name: value for name, value in problem.student.named_parameters() if value.requires_grad}
    known = kept.read(parameters, optimizer)
    history = History(**known) if known is not None else History()
    student, optimizer = accelerator.prepare(problem.student, optimizer)
    looks = watch or (lambda history: None)
    before, began, saved = history.seconds, time.monotonic(), time.monotonic()

    def clock() -> float:
        return before + time.monotonic() - began

    def keep() -> None:
        if accelerator.is_main_process:
            kept.write(parameters, optimizer, history.record())

    def validate() -> bool:
        """Return whether the training should continue."""
        progress(history.step, _expected(schedule, history), "validating")
        loss, perplexity = problem.judge(student)
        if loss < history.best:
            history.best_step = history.step
            if accelerator.is_main_process:
                kept.write_best(parameters)
        history.validations.append([history.step, loss, perplexity])
        recent = [each[1] for each in history.validations[-schedule.patience :]]
        return len(history.validations) <= schedule.patience or min(recent) <= history.best

    if not history.validations:
        validate()
        looks(history)
    try:
        while not history.ended and schedule.share(history.step, clock()) < 1:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * schedule.rate(schedule.share(history.step, clock()))
            loss = _step(problem, schedule, accelerator, student, optimizer, history.step)
            history.step, history.seconds = history.step + 1, clock()
            history.tokens += schedule.batch * problem.windows.shape[1]
            history.curve.append([history.step, history.tokens, round(history.seconds, 3), loss])
            if not math.isfinite(loss):
                raise RunError(
                    f"The training has diverged: its loss is {loss} at step {history.step}. Try "
                    "a smaller learning rate."
                )
            progress(history.step, _expected(schedule, history), f"training, loss {loss:.4f}")
            due = int(schedule.share(history.step, clock()) * schedule.validations)
            if due >= len(history.validations) and not validate():
                history.ended = "early stop"
            looks(history)
            if time.monotonic() - saved > SAVE_SECONDS:
                keep()
                saved = time.monotonic()
    except KeyboardInterrupt:  # on cancellation: save the trained state first
        keep()
        raise
    if not history.ended:
        if history.validations[-1][0] != history.step:
            validate()
        history.ended = "time" if schedule.minutes is not None else "steps"
    history.seconds = clock()
    keep()
    kept.read_best(parameters)
    looks(history)
    return replace(history)


def _step(
    problem: Problem, schedule: Schedule, accelerator, student: nn.Module, optimizer, step: int
) -> float:
    """Take one step on the next `batch` windows, divided among processes; return its loss."""
    picked = order(len(problem.windows), schedule, step)
    own = picked[accelerator.process_index :: accelerator.num_processes] or picked[:1]
    optimizer.zero_grad(set_to_none=True)
    with mixed(accelerator.device):
        loss = problem.loss(student, own, problem.windows[own].to(accelerator.device))
    accelerator.backward(loss)
    accelerator.clip_grad_norm_([value for value in student.parameters() if value.requires_grad], CLIP)
    optimizer.step()
    return float(accelerator.reduce(loss.detach(), "mean"))


def order(count: int, schedule: Schedule, step: int) -> list[int]:
    """Return the indices of the windows of a step, out of `count`: each once before any repeats."""
    picked: list[int] = []
    for place in range(step * schedule.batch, (step + 1) * schedule.batch):
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + place // count)
        picked.append(int(torch.randperm(count, generator=generator)[place % count]))
    return picked


def _expected(schedule: Schedule, history: History) -> int:
    """Estimate the number of steps of the run; 0: not known yet."""
    if schedule.minutes is None:
        return schedule.steps
    return (
        round(history.step * 60 * schedule.minutes / history.seconds)
        if history.step and history.seconds
        else 0
    )

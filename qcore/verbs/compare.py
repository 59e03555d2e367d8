"""`compare` for one recipe: load, quantize, measure speed, score the text, continue the prompts, return a
row.

The unquantized model runs first and writes three things into the run's folder for the other recipes: a
reference (see `evaluation/reference.py`), the tokens generated per prompt, and the identity of the model. A
row with `kl_mean` was compared with exactly this baseline. Heavy libraries are imported inside the functions
that use them, so that reading a spec stays cheap.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.text_files import line_end_note
from qcore.formats.kv import KVFormat
from qcore.recipes.spec import RunSpec
from qcore.results.rows import ResultRow
from qcore.verbs.checks import check_device, loaded_from
from qcore.verbs.record import describe, execution, kv_record

if TYPE_CHECKING:
    from qcore.library import Loaded
    from qcore.models import Checkpoint
    from qcore.recipes import Recipe
    from qcore.verbs.prepare import Prepared

Emit = Callable[[dict], None]
PROBED_WITHIN = 60.0  # seconds of the speed measurement; a longer one would make the probe too slow
REFERENCE, BASELINE = "reference.safetensors", "baseline.json"
OTHER_TOKENS = (
    "The file's own tokenizer, as transformers converts it, splits the text differently. The vocabularies "
    "are equal, so the model was scored on the tokens of the original's tokenizer."
)
THROUGH_THE_CACHE = (
    "The text was read through the quantized key-value cache as if token by token, and prompts were "
    "continued with it one by one; multiple-choice questions are answered without a cache."
)


def run_recipe(spec: RunSpec, recipe: Recipe, folder: Path, emit: Emit) -> ResultRow:
    """Run `recipe` and return its row. The recipe fp32 is the baseline and writes its reference into
    `folder`; the other recipes are compared with that reference. With a quantized key-value cache fp32 is an
    ordinary row, which shows the cost of the cache alone, and `record_reference` makes the baseline.

    `emit` receives {"phase", "done", "total", "detail"} dictionaries. Raise `QcoreError`s; a row is returned
    only if every phase succeeded.
    """
    from qcore.measurement import throughput
    from qcore.measurement.devices import DevicePeak
    from qcore.measurement.memory import PeakMemory
    from qcore.measurement.traffic import bytes_a_token

    session = _Session(spec, folder, emit)
    is_baseline, kv = spec.is_baseline(recipe.name), spec.kv_format
    progress = session.enter("load")
    original = session.checkpoint(progress)
    checkpoint, applied = loaded_from(original, recipe)
    with PeakMemory() as loading, DevicePeak(spec.device) as loading_there:
        loaded = session.load(checkpoint, applied, progress)
        if applied is recipe:
            made = session.quantize(loaded, recipe)
        else:
            made = session.take(loaded, recipe, original)
        loaded, ledger = made.loaded, made.ledger
        gc.collect()
    progress = session.enter("speed")
    with PeakMemory() as running, DevicePeak(spec.device) as running_there:
        speed = throughput.measure(
            loaded.model,
            spec.prompt_tokens,
            spec.new_tokens,
            repeats=spec.repeats,
            seed=spec.seed,
            progress=progress,
            kv=kv,
        )
    evaluation = session.evaluate(loaded, record=is_baseline)
    choices, answers = session.ask(loaded, record=is_baseline)
    generations = session.generate(loaded, record=is_baseline)
    session.leave()
    divergence = evaluation.divergence
    about: Any = session.record(loaded) | {
        "predicted": session.predicted(checkpoint, applied),
        "recipe": recipe.to_dict(),
        "execution": execution(loaded.model, kv),
        "kv": kv_record(kv, speed),
        "bytes_a_token": bytes_a_token(loaded.model, ledger.rows),
        "tokens_scored": evaluation.tokens_scored,
        "throughput": speed.to_dict(),
        "evaluation": evaluation.to_dict(),
        "choices": answers,
        "generations": generations,
        "ledger": ledger.to_dict(),
        "allocation": None if ledger.allocation is None else _prediction(ledger.allocation, divergence),
        "memory": {
            "loading": _memory(loading),
            "running": _memory(running),
            "device": {"loading": loading_there.peak_bytes, "running": running_there.peak_bytes},
        },
    }
    return ResultRow(
        recipe=recipe.name,
        status="ok",
        error=None,
        stored_bytes=ledger.stored_bytes,
        bits_per_weight=ledger.bits_per_weight,
        coverage=ledger.coverage,
        perplexity=evaluation.perplexity,
        # the baseline agrees with itself by definition; without a reference there is no figure
        kl_mean=0.0 if is_baseline else divergence and divergence.kl_mean,
        top1_agreement=1.0 if is_baseline else divergence and divergence.top1_agreement,
        prefill_tok_s=speed.prefill_tok_s,
        decode_tok_s=speed.decode_tok_s,
        ttft_s=speed.ttft_s,
        peak_load_bytes=loading.peak_bytes,
        peak_run_bytes=running.peak_bytes,
        quantize_s=made.quantize_s,
        choices=choices,
        record=about,
    )


def is_current(row: ResultRow, folder: Path) -> bool:
    """Return whether `row`, which an interrupted run measured, is of the model that the baseline in `folder`
    was measured on."""
    from qcore.base.files import read_json

    known = read_json(folder / BASELINE)
    return known is not None and row["record"].get("digest") == known["digest"]


def record_reference(spec: RunSpec, folder: Path, emit: Emit) -> None:
    """Run the unquantized model over text and prompts and write its reference into `folder`, for runs without
    an fp32 row."""
    from qcore.recipes import parse

    session = _Session(spec, folder, emit)
    progress = session.enter("load")
    loaded = session.load(session.checkpoint(progress), parse("fp32"), progress)
    session.evaluate(loaded, record=True)
    session.ask(loaded, record=True)
    session.generate(loaded, record=True)
    session.leave()


class _Session:
    """The steps that baseline and recipes share, and the time of each phase."""

    def __init__(self, spec: RunSpec, folder: Path, emit: Emit):
        import psutil
        import torch

        from qcore.base import texts

        self.spec, self.folder, self.emit = spec, Path(folder), emit
        self.started_at = time.time()
        self.seconds = {"start": max(0.0, self.started_at - psutil.Process().create_time())}
        self.notes: list[str] = []
        self.known: dict | None = None
        self._right: dict | None = None
        self._phase: str | None = None
        self._since = 0.0
        if spec.threads:
            torch.set_num_threads(spec.threads)
        torch.manual_seed(spec.seed)
        check_device(spec.device)
        self.text = texts.load_text(spec.text)
        self.asked: dict[str, dict] = {}  # the files of prompts and questions, for the record
        self._note_line_ends(self.text.name, self.text.line_ends)

    def _note_line_ends(self, name: str, line_ends: Mapping[str, int]) -> None:
        """Add a note if the line ends of a file were changed."""
        if note := line_end_note(name, line_ends):
            self.notes.append(note)

    def ids(self, loaded: Loaded):
        """Return the tokens (T,) of the text to score."""
        from qcore.base import texts

        return texts.tokenize(self.text, loaded.tokenizer, limit=self.spec.tokens)

    def enter(self, phase: str) -> Progress:
        """Begin a phase; return the function that reports its progress."""
        self.leave()
        self._phase, self._since = phase, time.perf_counter()
        self.emit({"phase": phase, "done": 0, "total": 0, "detail": ""})
        return lambda done, total, detail="": self.emit(
            {"phase": phase, "done": int(done), "total": int(total), "detail": str(detail)}
        )

    def leave(self) -> None:
        """End the phase."""
        if self._phase is not None:
            self.seconds[self._phase] = time.perf_counter() - self._since
        self._phase = None

    def checkpoint(self, progress) -> Checkpoint:
        """Return the model's checkpoint, checked from its headers. Raise `InputError` if it differs from the
        baseline's."""
        from qcore.base.files import read_json
        from qcore.verbs.prepare import find

        checkpoint = find(self.spec.model, self.spec.revision, progress=progress)
        self.known = read_json(self.folder / BASELINE)
        if self.known and self.known["digest"] != checkpoint.digest:
            raise InputError(
                f"{self.spec.model} has changed since the baseline was measured. Start the run again."
            )
        return checkpoint

    def load(self, checkpoint: Checkpoint, recipe: Recipe, progress) -> Loaded:
        """Return the model and its tokenizer, on the device of the run. Raise `TooLargeError` if the model
        does not fit under `recipe`."""
        from qcore.verbs.prepare import load

        spec = self.spec
        return load(
            checkpoint,
            recipe,
            device=spec.device,
            tokens=spec.prompt_tokens + spec.new_tokens,
            window=spec.window,
            progress=progress,
        )

    def quantize(self, loaded: Loaded, recipe: Recipe) -> Prepared:
        """Apply `recipe`. Raise `InputError` if the calibration text overlaps the scored text."""
        from qcore.quantization.calibration import check_overlap
        from qcore.verbs.prepare import CalibrationText, quantize

        progress, spec, began = self.enter("quantize"), self.spec, time.perf_counter()
        given = CalibrationText(
            spec.calibration, spec.calibration_tokens, spec.calibration_minutes, spec.imatrix
        )
        text = given.load(loaded.tokenizer, recipe)
        if text is not None:
            check_overlap(text, self.text.name, self.text.sha256, self.ids(loaded))
        made = quantize(loaded, recipe, calibration=text or given, progress=progress)
        self.notes += made.cautions
        return replace(made, quantize_s=time.perf_counter() - began)

    def take(self, loaded: Loaded, recipe: Recipe, original: Checkpoint) -> Prepared:
        """Return a saved model unchanged. Raise `InputError` if the scored text was used to make it, or if
        another project quantized it with another vocabulary than that of the `original`."""
        import torch

        from qcore.library.plain import check_judged, describe
        from qcore.library.vocabulary import with_tokens_of
        from qcore.verbs.prepare import as_it_is

        if loaded.checkpoint.foreign is not None:
            own = self.ids(loaded)
            loaded = with_tokens_of(loaded, original)
            self.notes.append(loaded.checkpoint.description)
            if not torch.equal(own, self.ids(loaded)):
                self.notes.append(OTHER_TOKENS)
            return as_it_is(loaded, recipe.name)
        check_judged(loaded, self.text.name, self.text.sha256, self.ids(loaded))
        made = loaded.recipe and f"Saved as {loaded.recipe.name}." or describe(loaded.checkpoint.folder)
        self.notes.append(made or f"Read from {loaded.checkpoint.folder}; how it was made is not on record.")
        return as_it_is(loaded, recipe.name)

    def evaluate(self, loaded: Loaded, *, record: bool):
        """Score the text, against the baseline's reference if there is one; with `record` this model becomes
        the baseline."""
        from qcore.evaluation import Reference, evaluate

        progress = self.enter("quality")
        path = self.folder / REFERENCE
        compared = (
            not record and self.known is not None
        )  # discard an incomplete reference of a failed baseline
        ids = self.ids(loaded)
        if self._kv(record) is not None:
            self.notes.append(THROUGH_THE_CACHE)
        if not record and not compared:
            self.notes.append("There is no KL and no top-1 agreement, because the baseline failed.")
        return evaluate(
            loaded.model,
            ids,
            window=self.spec.window,
            stride=self.spec.stride,
            reference=Reference.open(path) if compared else None,
            record=path if record else None,
            checkpoint=loaded.checkpoint.folder,
            tokenizer=loaded.tokenizer,
            progress=progress,
            kv=self._kv(record),
        )

    def _kv(self, is_baseline: bool) -> KVFormat | None:
        """Return the format of the key-value cache, None for the baseline, which keeps its own."""
        return None if is_baseline else self.spec.kv_format

    def ask(self, loaded: Loaded, *, record: bool) -> tuple[dict | None, dict | None]:
        """Answer the multiple-choice questions: return the summary, compared with the baseline unless this
        model is the baseline, and every answer. Return (None, None) if no questions were given."""
        from qcore.evaluation.choices import ask, summary
        from qcore.evaluation.questions import load_questions

        if self.spec.choices is None:
            return None, None
        progress, question_set = self.enter("questions"), load_questions(self.spec.choices)
        self._note_line_ends(question_set.name, question_set.line_ends)
        self.asked["questions"] = question_set.record
        answers = ask(loaded.model, loaded.tokenizer, question_set.questions, progress=progress)
        self._right = {"plain": answers.right, "by_length": answers.right_by_length}
        before = None if record or not self.known else self.known.get("right")
        return summary(question_set, answers, before), answers.to_dict()

    def generate(self, loaded: Loaded, *, record: bool) -> list[dict]:
        """Continue the evaluation prompts; with `record` these answers become the baseline's."""
        from qcore.base.files import write_json
        from qcore.base.prompts import load_prompts
        from qcore.evaluation.generation import compare_generations

        answers = []
        if self.spec.generate:
            progress = self.enter("prompts")
            prompts = load_prompts(self.spec.prompts)
            self._note_line_ends(prompts.name, prompts.line_ends)
            self.asked["prompts"] = prompts.record
            before = None if record or not self.known else self.known["answers"]
            answers = compare_generations(
                loaded.model,
                loaded.tokenizer,
                prompts.prompts,
                self.spec.generate_tokens,
                before,
                progress,
                chat=None if self.spec.chat else False,
                kv=self._kv(record),
            )
        if record:
            about = {
                "digest": loaded.checkpoint.digest,
                "answers": {answer.id: answer.tokens for answer in answers},
                "right": self._right,
            }
            write_json(self.folder / BASELINE, about)
        return [answer.to_dict() for answer in answers]

    def record(self, loaded: Loaded) -> dict:
        """Return the row's record: everything its figures depend on, and the command that repeats the run."""
        from qcore.measurement.environment import read_bandwidth

        spec, checkpoint = self.spec, loaded.checkpoint
        about = describe(loaded, self.text, spec.threads)
        if spec.device == "cpu":  # last, so that no figure includes its buffer; bounds the decode speed
            about["environment"]["read_bandwidth"] = read_bandwidth()
        return (
            about
            | self.asked
            | {
                "model": spec.model,
                "revision": checkpoint.revision or spec.revision,
                "window": spec.window,
                "stride": spec.stride or spec.window,
                "seed": spec.seed,
                "device": spec.device,
                "notes": self.notes,
                "run_id": self.folder.name,
                "spec": spec.to_dict(),
                "command": spec.command or f"python -m qcore runs repeat {self.folder.name}",
                "phase_seconds": self.seconds,
                "started_at": self.started_at,
                "finished_at": time.time(),
            }
        )

    def predicted(self, checkpoint: Checkpoint, recipe: Recipe) -> dict:
        """Return the plan's prediction for this run, from which its error is computed. Computed last, because
        a probe takes memory and time."""
        from qcore.planning import hindsight

        timed = self.spec.device == "cpu" and self.seconds["speed"] < PROBED_WITHIN
        return hindsight.predict(
            checkpoint, recipe, self.spec.prompt_tokens, self.spec.new_tokens, timed=timed, kv=self.spec.kv
        )


def _prediction(allocation: dict, divergence) -> dict:
    """Return the predicted and the measured loss of the choice of formats, in nats per token."""
    return {"predicted_kl": allocation["predicted_kl"], "measured_kl": divergence and divergence.kl_mean}


def _memory(memory) -> dict:
    names = ("start_bytes", "peak_bytes", "anonymous_bytes", "file_bytes")
    return {name: getattr(memory, name) for name in names}

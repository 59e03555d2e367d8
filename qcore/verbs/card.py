"""The model card, README.md, of every folder that qcore writes: `quantize`, `export`, `qat`, `prune` and
`distill` call `write`, `qcore card` calls `measure`.

Its metadata are those of the hub: the base model and the relation to it, the base's licence ("other" if none
is known), library, tags. Its text holds the recipe, the measured size, quality if a comparison measured it
here, and the command that makes the folder again. Models, texts and folders of this machine appear by their
last name only, because a card is made to be published.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import qcore
from qcore.base.errors import InputError
from qcore.base.files import read_json, write_text
from qcore.library import companions
from qcore.library.saving import MADE, MANIFEST, MARKERS, made_from
from qcore.models import Checkpoint
from qcore.models.checkpoint import ONNX_MANIFEST, read_folder
from qcore.models.classes import auto_class
from qcore.models.config import read_config, to_transformers
from qcore.models.packaged import HUB_ID
from qcore.models.packaged import SUMMARIES as DEFAULTS
from qcore.recipes.ledger import Ledger
from qcore.results import report
from qcore.results.rows import ResultRow
from qcore.results.store import Store
from qcore.results.verdicts import is_baseline, kv_of, with_verdicts
from qcore.verbs.command_words import last_part

CARD = "README.md"
BEGIN, END = "<!-- quality: written by qcore card -->", "<!-- end of quality -->"
NOT_MEASURED = "Not measured. `qcore compare` measures it, and `qcore card` writes it here."
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".onnx.data", ".npz")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_KEPT = ("language", "pipeline_tag", "license_name", "license_link")
_FORMS = {
    "qcore": ("qcore", "safetensors of qcore"),
    "transformers": ("transformers", "safetensors in full precision"),
    "onnx": ("onnx", "an ONNX graph"),
    "gguf": ("gguf", "GGUF, as llama.cpp reads it"),
    "mlx": ("mlx", "MLX"),
    "compressed-tensors": ("transformers", "compressed-tensors"),
    "gptq": ("transformers", "GPTQ"),
    "awq": ("transformers", "AWQ"),
    "bnb": ("transformers", "bitsandbytes"),
}
"""Target -> the hub's name of the library that reads it, and the form in words."""
_AUTO = "AutoModelForCausalLM"
_USES = {
    "qcore": """```python
import qcore  # before from_pretrained, which refuses the folder otherwise
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
    "onnx": "```bash\npython FOLDER/run_onnx.py\n```",
    "gguf": "```bash\nllama-cli -m FOLDER/FILE\n```",
    "mlx": "```bash\nmlx_lm.generate --model FOLDER --prompt 'Once upon a time'\n```",
}
_PLAIN_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""


@dataclass(frozen=True)
class Measured:
    """Quality as a comparison measured it: perplexity of base and model, mean KL divergence in nats per
    token, share of equal top-1 tokens, and the verdict's sentence, over `tokens` tokens of `text` in windows
    of `window`. `source` names the run; `note` qualifies the figures."""

    text: str
    tokens: int
    window: int
    perplexity: float | None
    base_perplexity: float | None
    kl_mean: float | None
    top1_agreement: float | None = None
    verdict: str | None = None
    source: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Facts:
    """A folder by its marker file: its target, recipe (None: none) and, for own weights, the ledger."""

    target: str
    recipe: dict | None
    ledger: dict | None
    made: dict | None

    @property
    def relation(self) -> str:
        """The hub's relation to the base model."""
        return "finetune" if self.target == "transformers" and self.recipe is None else "quantized"


def write(
    folder: Path, base: Checkpoint, words: Sequence[str], *, measured: Measured | None = None
) -> tuple[str, ...]:
    """Write the card of the model in `folder`, which was made from `base` by the command `words` (after
    `qcore`, see `command_words.py`), and copy the base's licence and the settings of its processor. Return
    notes for the user, such as that no licence is known.

    Without `measured`, figures come from the newest comparison here with the same original, recipe and
    calibration text, if there is one.
    """
    facts = _facts(folder)
    companions.carry_processor(base, folder)
    notes = companions.carry_licence(base, folder)
    metadata = companions.card(base)[0]
    licence = companions.licence(base) or "other"
    front: dict[str, Any] = {"license": licence}
    front |= {key: metadata[key] for key in _KEPT if key in metadata}
    library, form = _FORMS.get(facts.target, (facts.target, facts.target))
    front["library_name"] = library
    origin = made_from(base.folder) or base.origin
    if named := _on_the_hub(origin["model"]):
        front |= {"base_model": named, "base_model_relation": facts.relation}
    recipe = facts.recipe and facts.recipe.get("name")
    front["tags"] = list(dict.fromkeys(filter(None, ("qcore", facts.target, recipe, facts.relation))))
    title = _code(folder.name)
    lines = [
        f"# {title.strip('`')}",
        "",
        f"Made from {_code(named or last_part(origin['model']))} by qcore {qcore.__version__}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in _table(folder, facts, base, form, origin)),
        "",
        "## Use",
        "",
        _use(folder, facts),
        "",
        "## Quality",
        "",
        BEGIN,
        NOT_MEASURED,
        END,
        "",
        "## Make it again",
        "",
        f"```bash\n{shlex.join(['qcore', *words])}\n```",
        "",
        "## Licence",
        "",
        _licence(licence, named or last_part(origin["model"])),
    ]
    write_text(folder / CARD, _page(front, "\n".join(lines)))
    figures = measured or _find(folder, facts)
    if figures is not None:
        measure(folder, figures)
    return notes


def measure(folder: Path, measured: Measured) -> None:
    """Put figures into the card of `folder`, in place of earlier ones. Raise `InputError` if the folder has
    no card that qcore wrote."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    path = folder / CARD
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no {CARD} that can be read: {error}") from error
    if BEGIN not in card.text or END not in card.text:
        raise InputError(f"The {CARD} of {folder} was not written by qcore, so no figures are added to it.")
    before, _, rest = card.text.partition(BEGIN)
    text = f"{before}{BEGIN}\n{_quality(measured)}\n{END}{rest.partition(END)[2]}"
    figures = {"perplexity": measured.perplexity, "kl_divergence": measured.kl_mean}
    data = cast(ModelCardData, card.data)
    data.model_name = folder.name
    data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=f"{_one_line(measured.text)}, {measured.tokens} tokens",
            metric_type=name,
            metric_value=value,
        )
        for name, value in figures.items()
        if value is not None
    ] or None
    write_text(path, _page(data, text.strip("\n")))


def from_run(folder: Path, run_id: str | None = None) -> Measured:
    """Return the figures of the model in `folder`, or of the same original under the same recipe and
    calibration text, from the run `run_id` (None: the newest one that has them). Raise `InputError` if there
    are none."""
    found = _find(folder, _facts(folder), run_id)
    if found is None:
        where = f"The run {run_id} has" if run_id else "There are"
        raise InputError(
            f"{where} no figures for {folder}. Compare its original with the recipes fp32 and "
            f"saved:{folder.name} first."
        )
    return found


def of_compared(compared: dict) -> Measured | None:
    """Return the figures of `verbs.made.compared`; None if nothing was compared."""
    if "compared" not in compared:
        return None
    found = compared["compared"]
    return Measured(
        text=found["text"],
        tokens=found["tokens"],
        window=found["window"],
        perplexity=found["after"]["perplexity"],
        base_perplexity=found["before"]["perplexity"],
        kl_mean=found["after"]["kl_mean"],
        source="measured when the model was made",
    )


# -- facts ---------------------------------------------------------------------------------------------------


def _facts(folder: Path) -> _Facts:
    name, record = next(
        ((name, record) for name in MARKERS if isinstance(record := read_json(folder / name), dict)),
        (None, {}),
    )
    if name is None:
        raise InputError(f"{folder} was not written by qcore: it has none of {', '.join(MARKERS)}.")
    recipe, ledger = record.get("recipe"), record.get("ledger")
    target = {MANIFEST: "qcore", MADE: "transformers", ONNX_MANIFEST: "onnx"}.get(name)
    return _Facts(
        target or str(record.get("target")),
        recipe if isinstance(recipe, dict) else None,
        ledger if isinstance(ledger, dict) else None,
        record if name == MADE else None,
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder that qcore wrote."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(_WEIGHTS))


def _table(
    folder: Path, facts: _Facts, base: Checkpoint, form: str, origin: dict
) -> Iterable[tuple[str, str]]:
    revision = f" at {_code(origin['revision'])}" if origin.get("revision") else ""
    yield "base model", _code(_on_the_hub(origin["model"]) or last_part(origin["model"])) + revision
    size = sum(path.stat().st_size for path in weight_files(folder))
    if facts.recipe:
        yield "recipe", _code(facts.recipe.get("name"))
        skipped = (facts.recipe.get("modules") or {}).get("skip") or ()
        if skipped:
            yield "left out", ", ".join(_code(each) for each in skipped)
    if facts.made:
        yield "method", _code(facts.made.get("method") or facts.made.get("kind"))
    yield "form", form
    yield "size of the weight files", f"{report.human_bytes(size)} ({size:,} bytes)"
    if facts.ledger:
        ledger = Ledger.from_dict(facts.ledger)
        yield "bits per weight", f"{ledger.bits_per_weight:.2f}, of the quantized weights"
        yield "quantized", f"{report.human_percent(ledger.coverage)} of all weights"
    elif facts.recipe:
        yield "bits per weight", f"{8 * size / base.parameters:.2f}, of all weights"
    calibration = (facts.ledger or {}).get("calibration") or (facts.made or {}).get("calibration")
    if isinstance(calibration, dict) and "text" in calibration:
        text = f"{_plain(last_part(calibration['text']['name']))}"
        yield "calibration text", f"{text}, {calibration.get('tokens', 0):,} tokens"


def _find(folder: Path, facts: _Facts, run_id: str | None = None) -> Measured | None:
    """Return figures of the newest row that is of this model, or of its original under the same recipe and
    calibration text."""
    own = None
    if facts.target in ("qcore", "transformers"):
        own = read_folder(folder, folder.name, "folder", "").digest
    origin = made_from(folder) or {}
    for found in Store().latest(limit=1000):
        row = cast(ResultRow, found)
        record = found.get("record") or {}
        if (run_id is not None and found["run_id"] != run_id) or kv_of(row) != "none" or is_baseline(row):
            continue
        same = (
            facts.recipe is not None
            and all(record.get(key) == origin.get(key) for key in ("digest", "revision"))
            and record.get("recipe") == facts.recipe
            and _text(record.get("ledger")) == _text(facts.ledger)
        )
        if record.get("digest") == own or same:
            return _of_row(found, "the same recipe on the same original" if not own or same else None)
    return None


def _text(ledger: Any) -> Any:
    calibration = (ledger or {}).get("calibration")
    return calibration and {key: calibration.get(key) for key in ("text", "tokens", "window", "minutes")}


def _of_row(row: dict, note: str | None) -> Measured | None:
    rows = with_verdicts(Store().rows(row["run_id"]))
    baseline = next((each for each in rows if is_baseline(each) and each["status"] == "ok"), None)
    judged: ResultRow = next(
        each for each in rows if each["recipe"] == row["recipe"] and kv_of(each) == "none"
    )
    record, verdict = judged["record"], judged.get("verdict")
    return Measured(
        text=record["text"]["name"],
        tokens=record.get("tokens_scored") or record["spec"].get("tokens") or 0,
        window=record["window"],
        perplexity=judged["perplexity"],
        base_perplexity=baseline and baseline["perplexity"],
        kl_mean=judged["kl_mean"],
        top1_agreement=judged["top1_agreement"],
        verdict=verdict["sentence"] if verdict else None,
        source=f"run {row['run_id']}",
        note=note,
    )


# -- text ----------------------------------------------------------------------------------------------------


def _quality(measured: Measured) -> str:
    lines = ["| | base, fp32 | this model |", "| --- | --- | --- |"]
    perplexity = (report.human_perplexity(each) for each in (measured.base_perplexity, measured.perplexity))
    lines.append(f"| perplexity | {' | '.join(perplexity)} |")
    if measured.kl_mean is not None:
        lines.append(f"| KL divergence, nats per token | 0 | {report.human_number(measured.kl_mean)} |")
    if measured.top1_agreement is not None:
        lines.append(f"| same top-1 token | 100 % | {report.human_percent(measured.top1_agreement)} |")
    lines += ["", f"{_plain(measured.verdict)}"] if measured.verdict else []
    text = _plain(last_part(measured.text))
    conditions = f"{measured.tokens:,} tokens of {text}, windows of {measured.window} tokens"
    more = "; ".join(_plain(each) for each in (measured.source, measured.note) if each)
    return "\n".join([*lines, "", f"{conditions}{f'; {more}' if more else ''}."])


def _use(folder: Path, facts: _Facts) -> str:
    file = next((path.name for path in weight_files(folder)), "")
    text = _USES.get(facts.target, _PLAIN_USE)
    if _AUTO in text:
        text = text.replace(_AUTO, auto_class(to_transformers(read_config(folder, quantized=True)[0])))
    # a folder's name is data: it must not end the code block
    return text.replace("FOLDER", _one_line(folder.name).replace("`", "")).replace("FILE", file)


def _licence(licence: str, base: str) -> str:
    if licence == "other":
        return (
            f"The licence of {_code(base)} is not known here. Look it up and name it in the metadata of this "
            "card before you publish the model."
        )
    return f"That of {_code(base)}: {_plain(licence)}."


def _page(front: Any, text: str) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(**front) if isinstance(front, dict) else front
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def _on_the_hub(model: str) -> str | None:
    """Return the id of the model on the hub; None for a local one."""
    if model in DEFAULTS:
        return HUB_ID
    return model if _REPOSITORY.fullmatch(model) and not Path(model).is_absolute() else None


def _one_line(text: Any) -> str:
    return " ".join(report.visible(str(text)).split())


def _plain(text: Any) -> str:
    """Return text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#$~])", r"\\\1", _one_line(text))


def _code(text: Any) -> str:
    """Return text as inline code, which may stand in a table."""
    return "`" + _one_line(text).replace("`", "'").replace("|", "\\|") + "`"

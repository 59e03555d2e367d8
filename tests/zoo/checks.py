"""The checks of the zoo: each a small function of one checkpoint that returns a note, and raises if the
result is wrong."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

import qcore
from qcore.base.errors import QcoreError
from qcore.evaluation.generation import compare_generations
from qcore.formats.kv import kv_format_named
from qcore.library import exports
from qcore.recipes import parse
from qcore.runtime import Context, forward
from qcore.verbs import export, quantize
from tests.zoo.rows import Fault, Row, Upstream
from tests.zoo.subject import PROMPTS, RECIPES, Subject, ids, logits

NEW_TOKENS = 8
CALIBRATION = 512  # tokens
TEXT = Path(__file__).with_name("shrink.py")  # any text of some pages will do
MARGIN = 1e-3  # a difference of logits below which either of two tokens is the right one
EXPORTS = {"gguf": "gguf-q8_0", "compressed-tensors": "int4-g32-sym", "gptq": "int4-g32-sym", "onnx": "int8"}


def load(subject: Subject) -> str:
    """Logits are those of transformers, to the bit."""
    expected, found = logits(subject.plain), logits(subject.load().model)
    if not torch.equal(expected, found):
        raise Fault(f"logits differ from transformers' by {(expected - found).abs().max():.3g}")
    return ""


def recipe(subject: Subject, name: str) -> str:
    """The recipe covers the linear weights that an independent count finds; the model runs and is saved."""
    options = {"calibration": TEXT, "calibration_tokens": CALIBRATION} if parse(name).calibrated else {}
    loaded = qcore.quantize(subject.load(), name, **options)
    assert loaded.ledger is not None
    found = {row.name for row in loaded.ledger.rows if row.format is not None}  # under all names of tied ones
    kept = {row.name for row in loaded.ledger.rows if row.format is None and row.reason}
    expected = linear_weights(subject.plain)
    if name.endswith("head8"):
        found -= ends(subject.plain)
    if missed := sorted(expected - found - kept):
        raise Fault(f"not quantized and without a reason: {', '.join(missed[:3])} ({len(missed)})")
    if more := sorted(found - expected):
        raise Fault(f"quantized, but not the weight of a linear layer: {', '.join(more[:3])} ({len(more)})")
    result = logits(loaded.model)
    if not torch.isfinite(result).all():
        raise Fault("logits are not finite")
    exact = logits(subject.plain)
    # of the median token, because a small error may send some tokens to other experts
    error = ((result - exact).std(-1) / exact.std(-1)).median().item()
    if error > (0.1 if name == "int8" else 1.0):
        raise Fault(f"logits of the median token are off by {error:.2f} standard deviations")
    subject.stored[name], subject.models[name] = loaded.ledger.stored_bytes, loaded
    subject.saved[name] = qcore.save(loaded, subject.work / name)
    torch.save(result, subject.work / f"{name}.pt")
    left = len(expected & kept)
    return f"{left} kept by rule" if left else ""


def linear_weights(model: nn.Module) -> set[str]:
    """Return the names of the weights of linear layers and experts, by their modules alone, without head and
    routers."""
    names = set()
    head = model.get_output_embeddings()
    for path, module in model.named_modules(remove_duplicate=False):
        if module is head or path.rsplit(".")[-1] in ("gate", "router") or "Router" in type(module).__name__:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            is_matrix = isinstance(module, (nn.Linear, Conv1D)) and own == "weight"
            is_conv = isinstance(module, nn.modules.conv._ConvNd) or "conv" in path.rsplit(".")[-1]
            if is_matrix or (parameter.ndim == 3 and not is_conv and "bias" not in own):
                names.add(f"{path}.{own}")
    return names


def ends(model: nn.Module) -> set[str]:
    """Return the names of the weights of the head and of all embeddings."""
    head = model.get_output_embeddings()
    return {
        f"{path}.weight"
        for path, module in model.named_modules()
        if module is head or isinstance(module, nn.Embedding)
    }


def plan(subject: Subject) -> str:
    """Planned bytes are those of the ledgers and of the files, within 1 %."""
    if not subject.stored:
        return "no recipe to compare with"
    made = qcore.plan(str(subject.folder), list(subject.stored), kv=["fp32"], context=64)
    for row in made.rows:
        held = subject.stored[row.recipe]
        if abs(row.stored_bytes - held) > 0.01 * held:
            raise Fault(f"{row.recipe}: planned {row.stored_bytes:,} bytes, stored are {held:,}")
        written = sum(map(_bytes_in, subject.saved[row.recipe].glob("*.safetensors")))
        if abs(written - held) > 0.01 * held:
            raise Fault(f"{row.recipe}: the ledger has {held:,} bytes, the files {written:,}")
    return ""


def _bytes_in(path) -> int:
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


def stream(subject: Subject) -> str:
    """`--stream` writes the same tensors as quantizing in memory."""
    folder = subject.work / "streamed"
    quantize.run(str(subject.folder), parse("int4-g32"), folder, stream=True, progress=lambda *_: None)
    streamed = _tensors(folder)
    if "int4-g32" not in subject.saved:
        return "nothing to compare with"
    whole = _tensors(subject.saved["int4-g32"])
    if odd := sorted(streamed.keys() ^ whole.keys()):
        raise Fault(f"streamed and whole model have different tensors: {', '.join(odd[:3])} ({len(odd)})")
    for name, tensor in whole.items():
        if tensor.dtype != streamed[name].dtype or not torch.equal(tensor, streamed[name]):
            raise Fault(f"{name} differs between streamed and whole model")
    return ""


def _tensors(folder) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@torch.no_grad()
def generate(subject: Subject) -> str:
    """The native step, the modules, transformers' `generate` and a padded batch give the same tokens."""
    loaded = subject.models.get("int4-g32") or subject.load()
    model, tokenizer = loaded.model, loaded.tokenizer
    prompts = [torch.tensor([tokenizer(text)["input_ids"]]) for text in PROMPTS]
    try:
        _generate(subject.plain, prompts[:1])
    except Exception as error:
        raise Upstream(f"{type(error).__name__}: {error}") from error
    native = forward.reason_against(model) is None
    ways = {"the native step" if native else "the modules": _decode(model, prompts)}
    ways["a padded batch"] = [
        each.tokens for each in compare_generations(model, tokenizer, _asked(), NEW_TOKENS)
    ]
    if native:
        forward.detach(model)
        ways["the modules"] = _decode(model, prompts)
        forward.attach(model)
    ways["transformers' generate"] = _generate(model, prompts)
    (first, expected), *others = ways.items()
    for way, written in others:
        for prompt, one, other in zip(prompts, expected, written, strict=True):
            if not _same(model, prompt, one, other, trusted=way != "transformers' generate"):
                raise Fault(f"{first} and {way} give other tokens: {one} and {other}")
    return "native step" if native else "modules"


def _generate(model: nn.Module, prompts: list[torch.Tensor]) -> list[list[int]]:
    """Return what transformers' own loop writes, without the settings of the checkpoint."""
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, use_cache=True)
    model.generation_config = settings
    return [model.generate(prompt)[0, prompt.shape[1] :].tolist() for prompt in prompts]


def _asked() -> list:
    from qcore.base.prompts import Prompt

    return [Prompt(str(number), "test", text) for number, text in enumerate(PROMPTS)]


def _decode(model: nn.Module, prompts: list[torch.Tensor]) -> list[list[int]]:
    written = []
    for prompt in prompts:
        context, found, given = Context(model), [], prompt
        for _ in range(NEW_TOKENS):
            given = context.append(given).argmax(-1, keepdim=True)
            found.append(int(given))
        written.append(found)
    return written


def _same(
    model: nn.Module, prompt: torch.Tensor, one: list[int], other: list[int], trusted: bool = True
) -> bool:
    """Return whether both continuations are equal up to the end of a text, or leave each other at a tie. If
    `other` is not `trusted`, it is enough that `one` is what the model's forward gives: RoBERTa's `generate`
    counts positions otherwise than its forward."""
    for step, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            seen = torch.cat((prompt, torch.tensor([one[:step]], dtype=torch.long)), dim=1)
            last = model(input_ids=seen, use_cache=False).logits[0, -1]
            tied = abs(float(last[left] - last[right])) < MARGIN
            return tied or (not trusted and float(last.max() - last[left]) < MARGIN)
    return True


@torch.no_grad()
def kv(subject: Subject) -> str:
    """A key-value cache in 8 bits changes the logits little."""
    loaded = subject.models.get("int4-g32") or subject.load()
    exact, rounded = Context(loaded.model), Context(loaded.model, kv_format_named("int8"))
    sequence = ids()[:1].repeat(1, 2)  # 80 tokens: two groups of 32, and some more
    whole, read = loaded.model(input_ids=sequence, use_cache=False).logits[0], 0
    for part in sequence.split([33, 1, 1, 29, 1, 15], dim=1):
        expected, found = exact.append(part), rounded.append(part)
        read += part.shape[1]
        if not torch.isfinite(found).all():
            raise Fault("logits through a cache in 8 bits are not finite")
        if (error := ((found - expected).abs().max() / expected.std()).item()) > 0.3:
            if (own := ((whole[read - 1] - expected).abs().max() / expected.std()).item()) > 0.3:
                raise Upstream(f"its own cache changes the logits by {own:.2f} standard deviations")
            raise Fault(f"a cache in 8 bits changes the logits by {error:.2f} standard deviations")
    return ""


def evaluate(subject: Subject) -> str:
    """The perplexity is that of transformers' logits."""
    from qcore.base.texts import load_text, tokenize

    loaded = subject.load()
    found = qcore.evaluate(loaded, tokens=129, window=64, stride=64).nll_sum
    text = tokenize(load_text(None), loaded.tokenizer, limit=129)
    scores = []
    with torch.no_grad():
        for start in range(0, 129, 64):
            begin, end = max(0, start), min(129, start + 64)
            first = max(1, begin)
            seen = text[max(0, end - 64) : end]
            out = torch.log_softmax(
                subject.plain(input_ids=seen[None], use_cache=False).logits[0].float(), -1
            )
            offset = max(0, end - 64)
            scores += [-float(out[t - 1 - offset, text[t]]) for t in range(first, end) if t - 1 - offset >= 0]
    expected = sum(scores)
    if len(scores) == 128 and abs(found - expected) > 1e-3 * expected:
        raise Fault(f"the sum of NLL is {found:.4f}, that of transformers' logits {expected:.4f}")
    return ""


def to(subject: Subject, target: str) -> str:
    """The export is refused before any work, or works."""
    folder, original = subject.work / f"to-{target}", str(subject.even)
    chosen = parse(EXPORTS[target])
    export.check(original, chosen, folder, to=target)
    if target == "onnx":  # tracing takes seconds
        return "checked only"
    try:
        export.run(original, chosen, folder, to=target, progress=lambda *_: None)
    except QcoreError as error:
        raise Fault(f"refused only after the check: {error}") from error
    return ""


CHECKS: dict[str, Callable[[Subject], str]] = {
    "load": load,
    **{name: (lambda subject, name=name: recipe(subject, name)) for name in RECIPES},
    "plan": plan,
    "stream": stream,
    "generate": generate,
    "kv": kv,
    "evaluate": evaluate,
    **{target: (lambda subject, target=target: to(subject, target)) for target in EXPORTS},
}
assert set(EXPORTS) <= set(exports.TARGETS)


def run(subject: Subject, check: str) -> Row:
    """Run one check."""
    began = time.perf_counter()
    try:
        outcome, text = "ok", CHECKS[check](subject)
    except Upstream as error:
        outcome, text = "transformers", str(error)
    except QcoreError as error:
        outcome, text = "refused", str(error)
    except Fault as error:
        outcome, text = "fault", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno}"
        outcome, text = "fault", f"{type(error).__name__}: {error} ({where})"
    return Row(subject.name, check, outcome, " ".join(text.split())[:400], time.perf_counter() - began)

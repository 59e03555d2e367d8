"""Generate text: one text as a stream, or the answers to a set of evaluation prompts, to compare with the
baseline's.

All limits are enforced here for every caller, and every truncation is reported in `notes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from qcore.base.errors import InputError
from qcore.base.other_work import OtherWork, is_disturbed
from qcore.base.progress import Progress
from qcore.base.prompts import Message, Prompt
from qcore.evaluation import chat as chat_template
from qcore.evaluation import padding
from qcore.evaluation.sampling import Sampling
from qcore.evaluation.textstream import TextStream, decode
from qcore.formats.kv import KVFormat
from qcore.layers.positions import positions
from qcore.runtime import Context
from qcore.runtime.calls import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MAX_NEW_TOKENS = 2048
MAX_CONTEXT = 8192  # tokens of prompt and answer together, if the model has no smaller limit
MAX_CHARACTERS = 1_000_000
BATCH = 16  # prompts decoded together


@dataclass(frozen=True)
class Ready:
    """The tokens of a prompt. `notes` are sentences for the user on changes to the prompt."""

    tokens: list[int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """A text and its `tokens` (without the end-of-text token). `reason` tells why the text ends: "end",
    "length" or "stopped". `others_share` is the share of the processor that other processes took."""

    text: str
    tokens: list[int]
    reason: str
    prompt_tokens: int
    notes: tuple[str, ...]
    ttft_s: float
    seconds: float
    others_share: float | None = None

    @property
    def decode_tok_s(self) -> float | None:
        """Return tokens per second after the first token; None for fewer than two tokens."""
        return (len(self.tokens) - 1) / (self.seconds - self.ttft_s) if len(self.tokens) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        more = {"decode_tok_s": self.decode_tok_s, "disturbed": is_disturbed(self.others_share)}
        return {**asdict(self), "notes": list(self.notes), **more}


@dataclass(frozen=True)
class Generation:
    """A model's answer to an evaluation prompt. `first_divergence` is the index of the first token that
    differs from the baseline's, the shorter length if one is a prefix of the other, and None if they are
    equal or there is no baseline."""

    id: str
    kind: str
    prompt: str
    text: str
    tokens: list[int]
    first_divergence: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    chat: bool = False,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    kv: KVFormat | None = None,
) -> Generated:
    """Continue `prompt`, or answer it as a chat message if `chat`, by at most `max_new_tokens` tokens.

    Keys and values are kept in the form `kv` (None: as computed). `on_text` gets each piece of text as soon
    as it is certain; `should_stop` is called before every token. A prompt that does not fit is cut at its
    beginning, which `notes` reports. Raise `InputError` for a number out of range, an empty prompt, or a
    model without a chat template; `RunError` if a logit is NaN.
    """
    sampling, others = Sampling(temperature, top_p, top_k, seed), OtherWork()
    start = time.perf_counter()
    ready = prepare(model, tokenizer, prompt, max_new_tokens, chat)
    ends, stream, generator = end_tokens(model, tokenizer), TextStream(tokenizer), sampling.generator()
    ids = torch.tensor([ready.tokens], device=device_of(model))
    pieces: list[str] = []
    tokens: list[int] = []
    reason, first = "length", 0.0

    def show(piece: str) -> None:
        pieces.append(piece)
        if piece and on_text:
            on_text(piece)

    if should_stop and should_stop():
        return Generated("", [], "stopped", len(ready.tokens), ready.notes, 0.0, time.perf_counter() - start)
    for row in _steps(model, ids, None, lambda logits: sampling.choose(logits, generator), kv):
        token = int(row[0])
        first = first or time.perf_counter() - start
        if token in ends:
            reason = "end"
            break
        tokens.append(token)
        show(stream.push(token))
        if len(tokens) == max_new_tokens:
            break
        if should_stop and should_stop():
            reason = "stopped"
            break
    show(stream.finish())
    seconds, text = time.perf_counter() - start, "".join(pieces)
    return Generated(text, tokens, reason, len(ready.tokens), ready.notes, first, seconds, others.share())


def compare_generations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    baseline: dict[str, list[int]] | None = None,
    progress: Progress | None = None,
    *,
    chat: bool | None = None,
    batch: int = BATCH,
    kv: KVFormat | None = None,
) -> list[Generation]:
    """Answer `prompts` (objects with id, kind and text) greedily, and find where each answer leaves the
    baseline's.

    `baseline` maps a prompt's id to the baseline's tokens. `chat` None means: as a chat message if the model
    has a chat template; dialogues always need one. Prompts of similar length are decoded together, padded on
    the left and masked, several times faster than one by one. The baseline must be decoded in the same way;
    then an unchanged model diverges nowhere. Prompts are decoded one by one with a quantized cache (`kv`),
    because padding would share scales with the tokens, and for models that padding changes. The order of
    prompts is kept. Raises like `generate_text`.
    """
    chat = chat_template.has_template(tokenizer) if chat is None else chat
    ready = [
        prepare(model, tokenizer, prompt.messages or prompt.text, max_new_tokens, chat).tokens
        for prompt in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(ready[i]))
    size = batch if kv is None and len(ready) > 1 and padding.is_neutral(model) else 1
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    written: dict[int, list[int]] = {}
    for number, group in enumerate(groups):

        def tell(step: int, number: int = number, group: list[int] = group) -> None:
            if progress:
                phrase = (
                    f"prompts {number * size + 1} to {number * size + len(group)} of "
                    f"{len(prompts)}, token {step}"
                )
                progress(number * max_new_tokens + step, len(groups) * max_new_tokens, phrase)

        answers = _greedy(
            model, [ready[i] for i in group], max_new_tokens, end_tokens(model, tokenizer), tell, kv
        )
        written.update(zip(group, answers, strict=True))
        tell(max_new_tokens)
    return [
        Generation(
            prompt.id,
            prompt.kind,
            prompt.text,
            decode(tokenizer, written[i]),
            written[i],
            None
            if baseline is None or prompt.id not in baseline
            else first_divergence(baseline[prompt.id], written[i]),
        )
        for i, prompt in enumerate(prompts)
    ]


def first_divergence(base: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the index of the first token that differs; the shorter length if one is a prefix of the other;
    None if they are equal."""
    for index, (left, right) in enumerate(zip(base, other, strict=False)):
        if left != right:
            return index
    return None if len(base) == len(other) else min(len(base), len(other))


def check_new_tokens(max_new_tokens: int) -> None:
    """Raise `InputError` unless the number is an integer between 1 and `MAX_NEW_TOKENS`."""
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, int)
        or not 1 <= max_new_tokens <= MAX_NEW_TOKENS
    ):
        raise InputError(
            f"The number of new tokens is {max_new_tokens}, but it must be between 1 and {MAX_NEW_TOKENS}."
        )


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    max_new_tokens: int,
    chat: bool = False,
) -> Ready:
    """Check and tokenize `prompt`, a text (as a chat message if `chat`) or a dialogue. Raise `InputError` if
    it cannot be used; cut it and add a note if it is too long."""
    check_new_tokens(max_new_tokens)
    notes: list[str] = []
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    if (length := sum(len(message.content) for message in messages)) > MAX_CHARACTERS:
        raise InputError(f"The prompt has {length:,} characters; at most {MAX_CHARACTERS:,} are taken.")
    messages = [Message(message.role, _without_surrogates(message.content, notes)) for message in messages]
    chat = chat or not isinstance(prompt, str)
    text = chat_template.render(tokenizer, messages) if chat else messages[0].content
    if len(text) > 2 * MAX_CHARACTERS:
        raise InputError(f"The chat template of this model makes {len(text):,} characters of the prompt.")
    tokens = _tokenize(tokenizer, text, special=not chat)
    config = model.config.get_text_config()
    if max(tokens) >= config.vocab_size:
        raise InputError(
            f"The tokenizer gives token {max(tokens)}, but the model knows only "
            f"{config.vocab_size}: they do not match."
        )
    limit = min(positions(config) or MAX_CONTEXT, MAX_CONTEXT)
    if max_new_tokens >= limit:
        raise InputError(
            f"This model has {limit} positions, so at most {limit - 1} new tokens can be generated."
        )
    keep = limit - max_new_tokens
    if len(tokens) > keep:
        notes.append(
            f"The prompt has {len(tokens):,} tokens; only its last {keep:,} were read, so that "
            f"{max_new_tokens} new ones fit."
        )
    return Ready(tokens[-keep:], tuple(notes))


def _without_surrogates(text: str, notes: list[str]) -> str:
    """Return `text` with halves of surrogate pairs replaced, and add a note if there were any."""
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if clean != text and not notes:
        notes.append("The lone surrogates in the prompt were replaced, because no tokenizer can read them.")
    return clean


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Return the token ids of `text`, with the tokenizer's `special` tokens around it if so; the BOS token if
    `text` is empty."""
    tokens: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    if not tokens and tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    if not tokens:
        raise InputError(
            "The prompt is empty, and this model has no token to begin a text with; write at least a word."
        )
    return tokens


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the end-of-text tokens of the generation config, the config and the tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return found


@torch.no_grad()  # not inference_mode: optimum-quanto's int4 tensors fail under it
def _steps(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    choose: Callable[[torch.Tensor], torch.Tensor],
    kv: KVFormat | None,
) -> Iterator[torch.Tensor]:
    """Yield the next token (B,) of each row of `ids` (B, P), without end. `mask` (B, P) is 0 on the left
    padding of a row."""
    context = Context(model, kv)
    while True:
        ids = choose(context.append(ids, mask).float()).to(ids.device)[:, None]
        mask = None if mask is None else torch.cat((mask, torch.ones_like(ids)), dim=1)
        yield ids[:, 0]


def _greedy(
    model: PreTrainedModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    ends: set[int],
    tell: Callable[[int], None],
    kv: KVFormat | None,
) -> list[list[int]]:
    """Continue all `prompts` together; each stops at its own end."""
    width, device, greedy = max(map(len, prompts)), device_of(model), Sampling()
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    mask = torch.tensor(seen, device=device) if len(prompts) > 1 else None
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for step, row in enumerate(_steps(model, ids, mask, lambda logits: greedy.choose(logits, None), kv), 1):
        for index in tuple(open_rows):
            token = int(row[index])
            if token in ends:
                open_rows.remove(index)
            else:
                written[index].append(token)
        tell(step)
        if step == max_new_tokens or not open_rows:
            break
    return written

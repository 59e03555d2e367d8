"""Prompts are decoded together only where padding changes nothing."""

import pytest
import torch

from qcore.base.errors import InputError
from qcore.base.prompts import Prompt
from qcore.evaluation import padding
from qcore.evaluation.generation import compare_generations
from qcore.formats.kv import kv_format_named
from qcore.runtime import Context
from tests.tiny import tokenizer
from tests.zoo import model

PROMPTS = [Prompt(str(i), "test", text) for i, text in enumerate(("One", "A second prompt", "Three of them"))]


@pytest.mark.parametrize(
    "kind, neutral",
    [
        ("llama", True),
        ("qwen3_next", True),
        ("roberta", False),
        ("bart", False),
        ("bamba", True),
        ("xlm", False),
    ],
)
def test_a_batch_gives_the_tokens_of_each_prompt_alone(kind, neutral):
    """RoBERTa's positions count from the padding token, and BART's positions know no mask:
    batches gave other tokens. So did Bamba's while its positions were left out."""
    built = model(kind).float()
    assert padding.is_neutral(built) == neutral
    together = [each.tokens for each in compare_generations(built, tokenizer(), PROMPTS, 6)]
    assert together == [each.tokens for each in compare_generations(built, tokenizer(), PROMPTS, 6, batch=1)]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["xlm", "recurrent_gemma"])
def test_a_model_without_a_cache_reads_its_text_again(kind):
    built, ids = model(kind).float(), torch.arange(5, 25)[None]
    context = Context(built)
    for part in ids.split([12, 1, 7], dim=1):
        logits = context.append(part)
    assert not context.keeps and context.nbytes is None
    torch.testing.assert_close(logits, built(input_ids=ids, use_cache=False).logits[:, -1])
    with pytest.raises(InputError, match="cache"):
        Context(built, kv_format_named("int8")).append(ids)

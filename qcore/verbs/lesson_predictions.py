"""Next-token prediction of a model and of half of its layers: one pass each over a short text."""

from dataclasses import dataclass

import torch

from qcore.base.errors import InputError
from qcore.models import Checkpoint
from qcore.pruning.structured import with_layers
from qcore.training.distill import evenly
from qcore.verbs.prepare import load

SHOWN = 10
LONGEST = 256  # tokens


@dataclass(frozen=True)
class Predictions:
    """Logits (V,) of the token after `prompt` from all `layers[0]` layers and from `layers[1]` of them;
    `words`: the texts of the most probable tokens."""

    prompt: str
    teacher: torch.Tensor
    student: torch.Tensor
    layers: tuple[int, int]
    words: dict[int, str]


@torch.no_grad()
def predictions(checkpoint: Checkpoint, prompt: str) -> Predictions:
    """Predict with the whole model, then without every second layer. Raise `InputError` for an empty text, a
    model that does not fit into memory, or an architecture whose layers cannot be removed."""
    loaded = load(checkpoint, tokens=LONGEST, window=LONGEST)
    ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"][:, -LONGEST:]
    if not ids.numel():
        raise InputError("The text is empty; enter a word or two.")
    teacher = loaded.model(input_ids=ids, use_cache=False).logits[0, -1].float().clone()
    total = loaded.model.config.get_text_config().num_hidden_layers
    kept = evenly(total, max(1, total // 2))
    student = (
        with_layers(loaded.model, kept).eval()(input_ids=ids, use_cache=False).logits[0, -1].float().clone()
    )
    words = {
        int(token): str(loaded.tokenizer.decode([int(token)]))
        for token in teacher.topk(min(SHOWN, len(teacher))).indices
    }
    return Predictions(prompt, teacher, student, (total, len(kept)), words)

"""One checkpoint under test, and what its checks share."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import qcore
from qcore.library import Loaded
from tests.zoo.build import build
from tests.zoo.rows import Upstream
from tests.zoo.shrink import EVEN

PROMPTS = ("The first one.", "A second, and a little longer prompt", "Number 3")
TOKENS = 40  # of the sequences whose logits are compared
RECIPES = ("int8", "int4-g32", "nf4", "int4-g32-gptq", "int4-g32-head8")


def ids() -> torch.Tensor:
    """Return two sequences of bytes (2, TOKENS)."""
    return torch.randint(5, 250, (2, TOKENS), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """Return the logits of `ids()` without a cache, float32."""
    return model(input_ids=ids(), use_cache=False).logits.float()


@dataclass
class Subject:
    """The checkpoint of the architecture `name` in `folder`; checks write into `work`. `stored` holds the
    bytes of the ledger per recipe, `saved` the folders of saved models."""

    name: str
    folder: Path
    work: Path
    stored: dict[str, int] = field(default_factory=dict)
    saved: dict[str, Path] = field(default_factory=dict)
    models: dict[str, Loaded] = field(default_factory=dict)

    @cached_property
    def even(self) -> Path:
        """A checkpoint with widths that every export can hold."""
        return build(self.name, self.work / "even", shape=EVEN)

    def load(self) -> Loaded:
        """Return the unquantized model, loaded anew by qcore."""
        return qcore.load(str(self.folder))

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The model as transformers loads it, in float32. Raise `Upstream` if transformers cannot run it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
            logits(model)
        except Exception as error:
            raise Upstream(f"{type(error).__name__}: {error}") from error
        return model

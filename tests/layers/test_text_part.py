"""The text part of models that hold an encoder of another modality beside it."""

from qcore import recipes
from qcore.layers.select import select
from qcore.layers.text_part import text_part
from tests import zoo


def test_what_holds_the_embedding_is_no_tower():
    """GIT's layers lie beside its image encoder, in one module: it was left out whole, and nothing was
    quantized."""
    made = zoo.model("git")
    assert text_part(made).towers == ("git.image_encoder",)
    targets = [target.name for target in select(made, recipes.parse("int8")).targets]
    assert sum(name.startswith("git.encoder.layer.0.") for name in targets) == 6
    assert not any("image_encoder" in name for name in targets)

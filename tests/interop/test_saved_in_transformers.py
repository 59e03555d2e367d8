"""Case 21: a folder that qcore saved, in transformers, in fresh processes. Without qcore it must not load;
with `import qcore` it must compute the same bits."""

import matrix
import pytest
import runtimes
from architectures import exact_logits
from matrix import ARCHITECTURES

import qcore
from qcore.models.config import NEEDED

pytestmark = pytest.mark.slow

RECIPES = ("int4-g64", "int4-g32-head8")
QCORE = f"import sys; sys.path.insert(0, {str(runtimes.ROOT)!r}); import qcore"


@pytest.fixture(scope="module")
def saved(originals, tmp_path_factory):
    """Return the folders of models by (architecture, recipe)."""
    place = tmp_path_factory.mktemp("saved")
    return {
        (name, recipe): qcore.save(qcore.quantize(str(originals(name)), recipe), place / f"{name}-{recipe}")
        for name in ARCHITECTURES
        for recipe in RECIPES
    }


def test_transformers_alone_refuses_the_folder(saved, ids):
    """Failed before config.json named weights that do not exist: transformers warned and made up the rest."""
    folders = {name: saved[name, RECIPES[0]] for name in ("llama", "mixtral", "gpt2")}
    for name, answer in runtimes.logits("transformers", folders, ids).items():
        assert isinstance(answer, str) and "ValueError: The transformers file" in answer, name
        assert answer.strip().endswith(NEEDED), "the error does not say what to do"


@pytest.mark.parametrize("recipe", RECIPES)
def test_transformers_with_qcore_computes_the_same_bits(recipe, saved, ids):
    folders = {name: saved[name, recipe] for name in ARCHITECTURES}
    answers = runtimes.logits("transformers", folders, ids, setup=QCORE)
    for name, theirs in answers.items():
        ours = exact_logits(qcore.load(str(folders[name])).model, ids)
        matrix.passed("qcore", name, "transformers", recipe=recipe, ours=ours, theirs=theirs, tolerance=0.0)

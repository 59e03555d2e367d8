"""The speed probe of a plan: a model's shapes, timed on this machine under each recipe.
`qcore.planning.probe` stores the results for later plans."""

from dataclasses import dataclass
from typing import ClassVar

from qcore.base.errors import RunError
from qcore.jobs.kind import Context, JobKind, JobRequest


@dataclass(frozen=True, kw_only=True)
class ProbeRequest(JobRequest):
    """`recipes`: the names of the recipes to time. Raise `InputError` for an unknown one."""

    kind: ClassVar[str] = "probe"
    recipes: tuple[str, ...]

    def __post_init__(self):
        from qcore.recipes import parse_all

        object.__setattr__(self, "recipes", tuple(self.recipes))
        super().__post_init__()
        parse_all(self.recipes)


class SpeedProbe(JobKind):
    """Timing of a model's shapes; finished recipes are kept."""

    name, title = "probe", "Speed probe"
    request = ProbeRequest

    def describe(self, record: dict) -> str:
        """Return the recipes."""
        return f"probe of {','.join(record['recipes'])}"

    def run(self, request: ProbeRequest, context: Context) -> dict:
        """Time the recipes. Raise `RunError` if one could not be timed."""
        from qcore import library, models
        from qcore.planning import probe
        from qcore.recipes import parse

        outline = library.outline(request.model, request.revision, progress=context.progress)
        recipes = [parse(name) for name in request.recipes]
        found = probe.probe(models.meta_model(outline), recipes, progress=context.progress)
        failed = [each for each in found.values() if each.error]
        if failed:
            raise RunError(
                "; ".join(f"{each.recipe} could not be timed: {each.error}" for each in failed) + "."
            )
        return {"recipes": list(found)}

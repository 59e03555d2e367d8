"""Choose recipes: pills in groups, presets, and the advanced settings shared by all recipes of a run."""

from collections.abc import Iterable

import streamlit as st

from qcore import recipes
from qcore.base.errors import InputError, QcoreError
from qcore.base.home import is_public
from qcore.formats.kv import KV_FORMATS, NONE
from qcore.jobs import answers
from qcore.recipes import Engine, Recipe
from qcore.recipes.engines import recipes as engine_recipes
from ui import engine, families, state
from ui.forms import KEEP
from ui.glossary import explain
from ui.redaction import redacted
from ui.text import shielded

PUBLIC_SKIPS, LONGEST_SKIP = 100, 300
START = ("fp32", "int8", "int4-g64")
PRESETS = {
    "First look": START,
    "Around 8 bits": (
        "fp32",
        "int8",
        "int8-g64",
        "int8-dynamic",
        "bnb-int8",
        "torchao-int8",
        "torch-dynamic-int8",
        "quanto-int8",
    ),
    "Around 4 bits": (
        "fp32",
        "int4-g32",
        "int4-g64",
        "nf4-g64",
        "nf4-g64-dq",
        "fp4-g64",
        "kmeans4",
        "bnb-nf4",
        "quanto-int4",
    ),
    "Decreasing bits": ("fp32", "int8", "int4-g64", "int3", "int2"),
}
LIBRARIES, LIBRARIES_HELP = (
    "Other libraries",
    "Quantizers of other libraries, run under the same conditions for comparison.",
)
MORE_HELP = (
    "Recipe names, separated by commas, with another group size, -sym, -dq or -head8. Or saved: and a "
    "folder, for a model that was quantized, trained, pruned or distilled from this one. Or file: and a GGUF "
    "file, a folder or a hub id, for a model that another project quantized from this one."
)
SKIP_HELP = (
    "Patterns, separated by commas, matched against the dotted parts of module names: layers.0 is block 0 "
    "and not block 10, down_proj is every down projection. A pattern that matches nothing is an error."
)
HEADS = {"keep": "as loaded", "int8": "8-bit", "same": "like the other weights"}
CACHES = {NONE: "unquantized"} | {form.name: f"{form.bits}-bit" for form in KV_FORMATS.values()}
CACHE_HELP = (
    "A quantized cache is used for scoring, speed and answers. The baseline keeps an unquantized cache, so "
    "the recipe fp32 shows the cost of the cache alone."
)
HEAD_HELP = (
    "In small models the output head and the embedding are a large share of all weights. Applies to integer "
    "and codebook formats."
)


def choose(prefix: str) -> list[str]:
    """Return the chosen recipe names in the order offered. Unavailable engines are listed with the reason."""
    offered, missing = groups()
    chosen: list[str] = []
    for title, (names, help_text) in offered.items():
        default = [name for name in names if name in START]
        key = f"{prefix}.recipes.{title}"
        chosen += (
            st.pills(
                title,
                names,
                selection_mode="multi",
                default=default,
                key=key,
                help=help_text,
                wrap=True,
                **KEEP,
            )
            or []
        )
    for reason in missing:
        st.caption(f":material/block: {shielded(reason)}")
    return chosen


def choose_one(prefix: str, label: str, start: str) -> str:
    """Return the name of one recipe: a quantizing one of qcore's own."""
    names = [name for name in recipes.common() if recipes.parse(name).quantizes]
    return st.selectbox(
        label,
        names,
        index=names.index(start),
        key=f"{prefix}.recipe",
        help=explain("recipe"),
        width=280,
        **KEEP,
    )


def presets(prefix: str) -> None:
    """Draw a row of buttons that set the pills."""
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption("Presets", width="content")
        for title, names in PRESETS.items():
            st.button(
                title,
                key=f"{prefix}.preset.{title}",
                on_click=set_chosen,
                args=(prefix, names),
                type="tertiary",
                icon=":material/bolt:",
            )


def set_chosen(prefix: str, names: tuple[str, ...]) -> None:
    """Set the pills to `names`; for a button's `on_click`."""
    for title, (members, _) in groups()[0].items():
        st.session_state[f"{prefix}.recipes.{title}"] = [name for name in members if name in names]


def groups() -> tuple[dict[str, tuple[list[str], str]], list[str]]:
    """Return {title: (names, help)} of the available recipes, and a sentence per unavailable library."""
    offered: dict[str, tuple[list[str], str]] = {}
    for name in recipes.common():
        family = families.family(name)
        offered.setdefault(family.name.capitalize(), ([], family.help))[0].append(name)
    missing: list[str] = []
    try:
        reasons = state.remember("engines", lambda: engine.ask(answers.engines_here))
    except QcoreError as error:
        return offered, [redacted(str(error))]
    for name, (info, _) in engine_recipes().items():
        reason = reasons.get(info.name)
        if reason is None:
            offered.setdefault(LIBRARIES, ([], LIBRARIES_HELP))[0].append(name)
        elif reason not in missing:
            missing.append(reason)
    return offered, missing


def explained(chosen: Iterable[Recipe]) -> str:
    """Return Markdown with one paragraph per recipe: its name and its description."""
    return "\n\n".join(f"{families.badge(recipe.name)}: {_line(recipe)}" for recipe in chosen)


def _line(recipe: Recipe) -> str:
    return shielded(recipes.describe(recipe))


def advanced(prefix: str) -> tuple[list[str], tuple[str, ...], str]:
    """Return (additional recipe names, skip patterns, treatment of head and embedding)."""
    more = st.text_input(
        "More recipes",
        placeholder="int4-g128-dq, saved:folder, file:model.gguf",
        key=f"{prefix}.more",
        help=MORE_HELP,
        **KEEP,
    )
    skip = st.text_input(
        "Modules to skip", placeholder="layers.0, down_proj", key=f"{prefix}.skip", help=SKIP_HELP, **KEEP
    )
    head = st.selectbox(
        "Output head and embedding",
        list(HEADS),
        format_func=HEADS.get,
        key=f"{prefix}.head",
        help=HEAD_HELP,
        **KEEP,
    )
    return split(more), tuple(split(skip)), head


def cache(prefix: str, about: str = CACHE_HELP) -> str:
    """Return the format of the KV cache. `about`: its use, for the help text."""
    return st.selectbox(
        "KV cache",
        list(CACHES),
        format_func=CACHES.get,
        key=f"{prefix}.kv",
        help=f"{about} {explain('KV cache')}",
        **KEEP,
    )


def split(text: str) -> list[str]:
    """Return the parts of a list separated by commas or blanks."""
    return text.replace(",", " ").split()


def build(names: list[str], skip: tuple[str, ...], head: str) -> list[Recipe]:
    """Return recipes from names and the advanced settings. Raise `InputError` for an unknown name, and for
    more patterns to skip than a public server matches."""
    if is_public() and (len(skip) > PUBLIC_SKIPS or any(len(each) > LONGEST_SKIP for each in skip)):
        raise InputError(
            f"This server allows {PUBLIC_SKIPS} patterns of {LONGEST_SKIP} characters for modules to skip."
        )
    built = []
    for name in names:
        recipe = recipes.parse_row(name)
        if skip and recipe.quantizes:
            recipe = recipe.with_modules(skip=skip)
        if (
            head != "keep"
            and recipe.quantizes
            and not isinstance(recipe.weights, Engine)
            and "head8" not in name
        ):
            recipe = recipe.with_modules(head=head, embeddings=head)
        built.append(recipe)
    return built

"""One model, one text, in this process: what `generate` does on the command line."""

import time

from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.formats.kv import NONE, form_named
from qcore.recipes.spec import check_limits
from qcore.verbs.single import kv_option, load_once, options, recipe_of, times, waiting


def generate_once(
    model: str,
    prompt: str,
    new_tokens: int,
    *,
    chat: bool,
    sampling: dict,
    kv: str,
    threads: int | None,
    revision: str | None,
    device: str,
    progress: Progress,
) -> dict:
    """What `model` writes after `prompt` (`Generated.to_dict()`) with keys and values in the form `kv`, and
    the record.

    Raises `InputError` for numbers out of range, before the model is loaded.
    """
    import torch

    from qcore.evaluation.generation import check_new_tokens, generate_text
    from qcore.evaluation.sampling import Sampling
    from qcore.verbs.pipeline import describe, execution

    form = form_named(kv)
    check_new_tokens(new_tokens)
    check_limits(threads=threads)
    Sampling(**sampling)
    if threads:
        torch.set_num_threads(threads)
    with heavy_turn(waiting(progress)):
        began = time.time()
        loaded = load_once(model, revision, device, new_tokens, progress, form)
        found = generate_text(
            loaded.model,
            loaded.tokenizer,
            prompt,
            new_tokens,
            chat=chat,
            **sampling,
            kv=form,
            on_text=lambda text: progress(0, new_tokens, "writing"),
        )
    said = {name: value for name, value in sampling.items() if value != getattr(Sampling(), name)}
    words = [
        "generate",
        model,
        *options(
            prompt=prompt, new_tokens=new_tokens, threads=threads, revision=revision, **said, **kv_option(kv)
        ),
    ]
    about = {
        "device": device,
        "recipe": recipe_of(loaded),
        "sampling": sampling,
        "execution": execution(loaded.model, form),
    }
    cache = {"kv": {"name": NONE} if form is None else form.to_dict()}
    record = describe(loaded, threads=threads) | times(began, [*words, *["--chat"] * chat]) | about | cache
    return {"model": model, **found.to_dict(), "record": record}

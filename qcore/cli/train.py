"""`qcore qat`, `prune` and `distill`: train, prune and distill models."""

from typing import Annotated

import typer

from qcore.cli import options
from qcore.cli.runs import start

TOKENS, WINDOW = 262_144, 256
Text = Annotated[
    str | None,
    typer.Option(help="UTF-8 text to learn from (default: the packaged calibration text)", metavar="FILE"),
]
Validation = Annotated[
    str | None, typer.Option(help="Validation text (default: the end of --text)", metavar="FILE")
]
Tokens = Annotated[int, typer.Option(help="Number of training tokens")]
Steps = Annotated[int, typer.Option(help="Training steps of --batch windows")]
Minutes = Annotated[
    float | None, typer.Option(help="Minutes to train, instead of --steps", metavar="MINUTES")
]
Batch = Annotated[int, typer.Option(help="Windows per step")]
Rate = Annotated[
    float | None, typer.Option(help="Learning rate (default: depends on the form)", metavar="RATE")
]
Validations = Annotated[int, typer.Option(help="Number of validations")]
Patience = Annotated[int, typer.Option(help="Stop after this many validations without improvement")]
Seed = Annotated[int, typer.Option(help="Seed of the order in which windows are read")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Measure the model before and after: size, speed, perplexity, KL")
]


def qat(
    model: options.Model,
    recipe: Annotated[
        str,
        typer.Option(
            help="One of qcore's own recipes; its method chooses the initial codes", show_default=False
        ),
    ],
    out: options.Out,
    text: Text = None,
    validation: Validation = None,
    form: Annotated[
        str, typer.Option(help="light: train scales and norms; full: also the weights")
    ] = "light",
    learn_scales: Annotated[
        bool, typer.Option("--learn-scales", help="In the full form, learn scales as LSQ does")
    ] = False,
    loss: Annotated[str, typer.Option(help="kl: the unquantized model teaches; next: the text does")] = "kl",
    tokens: Tokens = TOKENS,
    window: options.Window = WINDOW,
    steps: Steps = 200,
    minutes: Minutes = None,
    batch: Batch = 1,
    rate: Rate = None,
    validations: Validations = 8,
    patience: Patience = 3,
    seed: Seed = 0,
    compare: Compare = False,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    device: options.Device = "cpu",
    json: options.Json = None,
) -> int:
    """Train MODEL in its quantized form to restore its original predictions, and save it as an ordinary
    quantized model.

    After a kill or Ctrl-C the same command continues.
    """
    from qcore.jobs.kind_make import QatRequest
    from qcore.training.attach import TrainableSet
    from qcore.training.loop import Schedule
    from qcore.training.qat import Qat

    schedule = Schedule(
        steps=steps, minutes=minutes, batch=batch, validations=validations, patience=patience, seed=seed
    )
    asked = Qat(
        form=TrainableSet(form, learn_scales),
        loss=loss,
        text=text,
        validation=validation,
        tokens=tokens,
        window=window,
        rate=rate,
        schedule=schedule,
    )
    request = QatRequest(
        model=model,
        revision=revision,
        recipe=options.one_recipe(recipe),
        options=asked,
        out=str(out),
        overwrite=overwrite,
        compare=compare,
        device=device,
    )
    return start(request, json)


def prune(
    model: options.Model,
    method: Annotated[
        str, typer.Option(help="wanda, magnitude, 2:4, neurons, heads or layers", show_default=False)
    ],
    out: options.Out,
    amount: Annotated[
        float, typer.Option(help="Share of the weights, neurons, key-value groups or layers to prune")
    ] = 0.5,
    recipe: Annotated[str | None, typer.Option(help="Also quantize", metavar="RECIPE")] = None,
    order: Annotated[str, typer.Option(help="Prune before or after quantization")] = "before",
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Do not store zeros; only qcore reads the result")
    ] = False,
    text: Text = None,
    tokens: Annotated[int, typer.Option(help="Number of calibration tokens for the scores")] = 16384,
    compare: Compare = False,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    json: options.Json = None,
) -> int:
    """Prune single weights of MODEL (wanda, magnitude, 2:4), or whole parts (neurons, heads, layers), which
    leaves a smaller ordinary model."""
    from qcore.jobs.kind_make import PruneRequest
    from qcore.verbs.prune import Prune

    asked = Prune(
        method=method,
        amount=amount,
        recipe=options.one_recipe(recipe),
        order=order,
        sparse=sparse,
        calibration=text,
        tokens=tokens,
    )
    request = PruneRequest(
        model=model, revision=revision, options=asked, out=str(out), overwrite=overwrite, compare=compare
    )
    return start(request, json)


def distill(
    model: options.Model,
    layers: Annotated[int, typer.Option(help="Number of layers of the student", show_default=False)],
    out: options.Out,
    keep: Annotated[str, typer.Option(help="Choice of layers: evenly spaced, or by influence")] = "even",
    neurons: Annotated[
        float | None, typer.Option(help="Share of each MLP's neurons to prune as well", metavar="SHARE")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of both distributions")] = 1.0,
    hidden: Annotated[float, typer.Option(help="Weight of the hidden-state loss")] = 0.0,
    text: Text = None,
    validation: Validation = None,
    tokens: Tokens = TOKENS,
    window: options.Window = WINDOW,
    steps: Steps = 200,
    minutes: Minutes = None,
    batch: Batch = 2,
    rate: Rate = None,
    validations: Validations = 8,
    patience: Patience = 3,
    seed: Seed = 0,
    compare: Compare = False,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    device: options.Device = "cpu",
    json: options.Json = None,
) -> int:
    """Train a student with fewer layers to predict what MODEL predicts, and save it as an ordinary model,
    which can be quantized.

    After a kill or Ctrl-C the same command continues.
    """
    from qcore.jobs.kind_make import DistillRequest
    from qcore.training.distill import Distill
    from qcore.training.loop import Schedule

    schedule = Schedule(
        steps=steps, minutes=minutes, batch=batch, validations=validations, patience=patience, seed=seed
    )
    asked = Distill(
        layers=layers,
        keep=keep,
        neurons=neurons,
        temperature=temperature,
        hidden=hidden,
        text=text,
        validation=validation,
        tokens=tokens,
        window=window,
        rate=rate,
        schedule=schedule,
    )
    request = DistillRequest(
        model=model,
        revision=revision,
        options=asked,
        out=str(out),
        overwrite=overwrite,
        compare=compare,
        device=device,
    )
    return start(request, json)

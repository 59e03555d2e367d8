"""Make models from others: quantization-aware training, pruning, distillation."""

from qcore.jobs.kinds import MAKING
from ui import making_form, making_view, run_panel, state

state.page(
    "Train & prune",
    "Recover quality lost to quantization, or make a model smaller by pruning or distillation. Measure both.",
)

run_panel.in_progress(*MAKING, more=making_form.curve)
chosen = run_panel.finished(
    "making",
    MAKING,
    form=making_form.form,
    empty="Nothing has been made yet. Start above: ten minutes of training recover most of the quality that "
    "a small model loses at 3 bits.",
    another="Make another",
    label="Finished models",
)
making_view.draw(chosen)

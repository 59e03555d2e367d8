"""Write a model for another project's code, prove it beside the original, and download it."""

from ui import export_form, export_view, run_panel, state

state.page(
    "Export",
    "Write a model in the form that your runtime reads: the same codes that qcore measured, in other bytes.",
)

run_panel.in_progress("export")
chosen = run_panel.finished(
    "export",
    ["export"],
    form=export_form.form,
    empty="Nothing has been exported yet. Start above: the default model is a GGUF file within a minute, "
    "and is listed here with its size, a download and the command that runs it.",
    another="Export another",
    label="Finished exports",
)
export_view.draw(chosen)

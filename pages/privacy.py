"""What a public server keeps of a visit, for how long, and what it allows."""

from ui import privacy_view, state

state.page(
    "What this server keeps",
    "This server is open to everybody, without accounts. Your runs, texts and prompts are shown to your "
    "browser only.",
)
privacy_view.draw()

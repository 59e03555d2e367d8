"""What a person chooses before a run: `model`, `recipes`, `text` (and the conditions of the measurements),
one file each.

Keys of widgets begin with the page's name, so that pages do not disturb each other, and keep their values
across pages.
"""

KEEP = {"persist_state": "session"}

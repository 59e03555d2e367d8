"""The form of a run, one file per part: `model`, `recipes`, and `text` with the measurement conditions.

Widget keys begin with the page's name, so that pages do not share state. Values persist across pages.
"""

KEEP = {"persist_state": "session"}

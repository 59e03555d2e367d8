"""One file per measured program.

Each has `load(options)`, which returns a function `measure(item) -> {figure: rate}` and a dictionary that
describes the loaded program. The options are "threads", "items", "files" ({item: path}, see `prepare.py`),
"prompt" (token ids) and "name", the process's own.
"""

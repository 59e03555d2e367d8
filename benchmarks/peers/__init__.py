"""One file for each program that is measured.

Each has `load(options)`, which returns a function `measure(item) -> {figure: rate}` and a dictionary that
says what was loaded. The options are "threads", "items", "files" ({item: path}, see `prepare.py`), "prompt"
(token ids) and "name", the process's own.
"""

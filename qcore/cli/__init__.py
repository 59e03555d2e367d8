"""The command line, `qcore` or `python -m qcore`: a thin layer over `qcore.verbs` and `qcore.jobs`."""

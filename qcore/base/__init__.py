"""Foundations that every other package uses. Importing them loads no heavy library.

errors.py    errors shown to users, one sentence each
home.py      the cache folder, and building folders in it atomically
files.py     files and folders that are replaced atomically; JSON
registry.py  tables of named entries that register themselves
process.py   detached processes: start, identify, end
turn.py      the lock that lets one process at a time load a model
executor.py  where work runs: here or on a cluster; cluster.py talks to Ray
cpu.py       the processor: name, instruction sets, cores; other_work.py measures what others take of it
cgroups.py   limits of control groups (containers)
quiet.py     silences irrelevant messages of other libraries
texts.py     texts and prompts
"""

"""What every other room stands on; loads nothing heavy.

errors.py    the errors that people see, one sentence each
home.py      the cache folder, and how a folder appears in it whole
files.py     JSON on disk that is never half written
registry.py  named things that register themselves
process.py   processes of one's own: start detached, identify, end
turn.py      one heavy thing at a time on a machine
executor.py  where work runs: here or on a cluster; cluster.py talks to Ray
cpu.py       what the processor can do
quiet.py     other libraries' noise
texts.py     texts and prompts
"""

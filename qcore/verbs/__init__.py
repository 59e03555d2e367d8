"""One file per verb, shared by the Python API, the command line, jobs and pages.

prepare.py       find, check the memory, load, calibrate, quantize: the only path to a model ready for use
checks.py        check a request from headers and files alone
record.py        the part that all records share
compare.py       one recipe of a comparison, from loading to its row
quantize.py  export.py  qat.py  prune.py  distill.py     new models; made.py is their common part
evaluate.py  ask.py  bench.py  generate.py  profile.py   one model, one measurement
plan.py  sensitivity.py  layer_errors.py                 predictions, and causes of the figures
lessons/         the page Learn
"""

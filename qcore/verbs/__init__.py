"""One file per verb, used alike by the Python API, the command line, jobs and pages.

prepare.py       find, check that it fits, load, calibrate, quantize: the one way to a model that is ready
checks.py        whether a request can be carried out, from headers and files alone
record.py        what every record holds
compare.py       one recipe of a comparison, from load to row
quantize.py  export.py  qat.py  prune.py  distill.py     models made from others; made.py holds what they share
evaluate.py  ask.py  bench.py  generate.py  profile.py   one model, one measurement
plan.py  sensitivity.py  layer_errors.py                 before and behind the figures
lessons/         the page Learn
"""

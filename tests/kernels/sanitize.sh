#!/bin/sh
# The kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer in the native code: any finding ends the run with an error.
# Usage, from the root: tests/kernels/sanitize.sh [pytest arguments]      PYTHON chooses the interpreter.
set -eu
runtime=$(g++ -print-file-name=libasan.so)
[ -e "$runtime" ] || { echo "g++ has no AddressSanitizer runtime here." >&2; exit 1; }
export QCORE_KERNEL_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1"
export ASAN_OPTIONS="detect_leaks=0:halt_on_error=1" UBSAN_OPTIONS="print_stacktrace=1"
python=${PYTHON:-.venv/bin/python}
"$python" -c "from qcore.kernels.build import build; build()"  # before the preload, which would slow the compiler down a hundredfold
export LD_PRELOAD="$runtime $(g++ -print-file-name=libstdc++.so.6)"  # the latter first seen by the sanitizer, so that it finds how to throw
# -s: a finding is written past pytest, straight to the terminal. Other processors' functions are left out: their emulation would be compiled anew.
exec "$python" -m pytest tests/kernels tests/quantization/methods/test_stepwise.py --ignore tests/kernels/test_instructions.py -s -p no:cacheprovider "$@"

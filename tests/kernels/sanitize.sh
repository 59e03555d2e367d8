#!/bin/sh
# Run the kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer in the native code. Any finding
# ends the run with an error.
#
# Usage, from the root of the repository: tests/kernels/sanitize.sh [pytest arguments]
# The variable PYTHON chooses the interpreter.
set -eu
runtime=$(g++ -print-file-name=libasan.so)
[ -e "$runtime" ] || { echo "g++ has no AddressSanitizer runtime here." >&2; exit 1; }
sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=all"
# Checks are calls: inline ones take the compiler three times as long and find the same.
checks="--param asan-instrumentation-with-call-threshold=0"
export QCORE_KERNEL_FLAGS="$sanitizers $checks -fno-omit-frame-pointer -g1 -O1"
export UBSAN_OPTIONS="print_stacktrace=1"
export ASAN_OPTIONS="detect_leaks=0:halt_on_error=1:allocator_may_return_null=1"
python=${PYTHON:-.venv/bin/python}
# Compile before the preload, which slows the compiler down a hundredfold.
"$python" -c "from qcore.kernels.build import build; build()"
# The sanitizer must find the C++ runtime when it starts, to intercept exceptions.
export LD_PRELOAD="$runtime $(g++ -print-file-name=libstdc++.so.6)"
# With -s, findings reach the terminal. Other processors' instruction sets are left out: compiling their
# emulation with sanitizers takes too long.
exec "$python" -m pytest tests/kernels tests/quantization/methods/test_stepwise.py \
    tests/runtime/test_native_memory.py --ignore tests/kernels/test_instructions.py \
    -s -p no:cacheprovider "$@"

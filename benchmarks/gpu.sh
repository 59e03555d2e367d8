#!/usr/bin/env bash
# Check everything that --device cuda promises, on a machine with a GPU, and print two tables. Under ten minutes.
#
#     benchmarks/gpu.sh [--model smollm2-135m] [--recipes A,B] [--json FILE]
#
# benchmarks/gpu.py describes the checks. The exit status is 0 if all of them hold.
set -eu
cd "$(dirname "$0")/.."
exec timeout 600 "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"

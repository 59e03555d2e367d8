# make setup | make run | make develop | make test: each works from a bare clone and does all of its set-up first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
TORCH_CPU := https://download.pytorch.org/whl/cpu
# Tests run in parallel, each with a cache folder of its own. Those that measure memory or start a cluster run one
# after the other, beside the tests under sanitizers.
BESIDE := -n logical --maxprocesses 4 --dist worksteal
DURATIONS := --durations 10

TWO := $(MAKE) --no-print-directory --jobs 2 --output-sync=target

.PHONY: setup run develop test quick reliability lint types sanitize tests beside apart test-interop chromium simde model kernels \
	lock audit

setup: .venv/.ready model kernels

run: setup
	$(BIN)/streamlit run app.py --server.address localhost

# The same, and a page runs again when its file is saved.
develop: setup
	$(BIN)/streamlit run app.py --server.address localhost --server.fileWatcherType auto --server.runOnSave true

test:
	+$(TWO) setup lint types
	+$(MAKE) --no-print-directory beside
	+$(TWO) apart sanitize

# The tests that need neither the default model nor a browser; for the minutes between two commits.
quick: lint simde kernels
	$(BIN)/pytest $(BESIDE) $(DURATIONS) -m "not slow and not browser and not ray and not alone and not interop"

# The tests of bad inputs and faults; writes tests and results into docs/reliability.md.
reliability: setup .venv/.test-ready chromium simde
	rm -f .venv/rows.jsonl
	QCORE_ROWS=.venv/rows.jsonl $(BIN)/pytest $(BESIDE) -m "row and not ray and not alone and not interop"
	QCORE_ROWS=.venv/rows.jsonl $(BIN)/pytest -m "row and (ray or alone)"
	$(BIN)/python tests/reliability.py .venv/rows.jsonl

tests: beside apart

beside: setup .venv/.test-ready chromium simde
	$(BIN)/pytest $(BESIDE) $(DURATIONS) -m "not ray and not alone and not interop"

apart: setup .venv/.test-ready chromium
	$(BIN)/pytest $(DURATIONS) -m "ray or alone"

# What is exported here runs in other projects' runtimes; writes the matrix of docs/interop.md.
test-interop: setup .venv/.test-ready .venv-interop/.ready
	rm -f .venv-interop/cells.jsonl
	QCORE_CELLS=.venv-interop/cells.jsonl $(BIN)/pytest $(BESIDE) $(DURATIONS) tests/interop
	$(BIN)/python tests/interop/matrix.py .venv-interop/cells.jsonl

lint: .venv/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find qcore/kernels/native -name '*.cpp' -o -name '*.h')
	$(BIN)/codespell

types: .venv/.test-ready
	$(BIN)/mypy

sanitize: .venv/.test-ready simde
	PYTHON=$(BIN)/python tests/kernels/sanitize.sh -q $(BESIDE)

# Without an NVIDIA driver torch's CUDA build (3 GB) is useless. PyTorch's own index has a CPU build (0.2 GB).
.venv/.ready: requirements-pins.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"qcore needs Python 3.11 or later; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	@if [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) --retries 0 --timeout 5 install --no-deps --index-url $(TORCH_CPU) \
			"$$(grep '^torch==' requirements-pins.txt)" 2>/dev/null \
		|| echo "PyTorch's index of CPU builds does not answer; torch comes from the default index."; fi
	$(PIP) install -r requirements-pins.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

.venv/.test-ready: .venv/.ready requirements-test.txt requirements-ray.txt
	$(PIP) install -r requirements-test.txt
	touch $@

# Other projects' packages, on top of those of .venv: torch and transformers are not installed twice.
.venv-interop/.ready: .venv/.ready requirements-interop.txt
	$(BIN)/python -m venv --clear .venv-interop
	echo "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" > \
		"$$(.venv-interop/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/qcore-venv.pth"
	.venv-interop/bin/python -m pip --quiet --disable-pip-version-check install --no-deps \
		-r requirements-interop.txt
	touch $@

# Every package that the dashboard needs, with hashes; without torch, whose build for CPUs has an index of its own, and
# without what only torch's CUDA build needs. To raise a version, edit requirements-pins.txt, then run this.
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13 triton
lock: .venv-tools/.ready
	printf '%s\n' $(CUDA) > .venv-tools/cuda.txt
	.venv-tools/bin/uv --quiet pip compile --universal --python-version 3.11 --generate-hashes --no-emit-package torch \
		--excludes .venv-tools/cuda.txt --custom-compile-command "make lock" requirements-pins.txt \
		--output-file requirements.lock

# Known vulnerabilities of the locked packages and of torch. Asks PyPI, so it needs a network, and no test runs it.
audit: .venv-tools/.ready
	grep '^torch==' requirements-pins.txt > .venv-tools/torch.txt
	.venv-tools/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv-tools/torch.txt
	.venv-tools/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

.venv-tools/.ready: requirements-tools.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip --quiet --disable-pip-version-check install -r requirements-tools.txt
	touch $@

chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		echo "Installing Chromium for the browser tests"; \
		if [ "$$(id -u)" = 0 ]; then SUDO=; else SUDO=sudo; fi; \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends chromium; }

# SIMDe's headers express one processor's instructions in another's: AVX-512 and NEON are tested everywhere.
simde:
	@echo '#include <simde/simde-common.h>' | $${CXX:-g++} -fsyntax-only -x c++ - 2>/dev/null || { \
		echo "Installing SIMDe for the tests of other processors' kernels"; \
		if [ "$$(id -u)" = 0 ]; then SUDO=; else SUDO=sudo; fi; \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends libsimde-dev; }

model: .venv/.ready
	$(BIN)/qcore models --prepare smollm2-135m
	$(BIN)/qcore models --prepare smollm2-135m-dithered

# Without this they are compiled on first use. Without a compiler, quantized layers run in plain torch.
kernels: .venv/.ready
	-$(BIN)/python -m qcore.kernels.build

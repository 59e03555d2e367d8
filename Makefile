# make setup | make run | make test: each works from a bare clone and does all of its set-up first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup run test quick chromium simde model kernels

setup: .venv/.ready chromium model kernels

run: setup
	$(BIN)/streamlit run app.py

test: setup simde
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest
	PYTHON=$(BIN)/python tests/kernels/sanitize.sh -q

# The tests that need neither the default model nor a browser; for the minutes between two commits.
quick: .venv/.ready simde
	$(BIN)/pytest -m "not slow and not browser and not ray"

.venv/.ready: requirements.txt requirements-test.txt requirements-ray.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qcore needs Python 3.11 or later; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		echo "Installing Chromium for the browser tests"; \
		if [ "$$(id -u)" = 0 ]; then SUDO=; else SUDO=sudo; fi; \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends chromium; }

# Headers that express one processor's instructions in another's: the kernels of AVX-512 and NEON are tested on every machine.
simde:
	@echo '#include <simde/simde-common.h>' | $${CXX:-g++} -fsyntax-only -x c++ - 2>/dev/null || { \
		echo "Installing SIMDe for the tests of other processors' kernels"; \
		if [ "$$(id -u)" = 0 ]; then SUDO=; else SUDO=sudo; fi; \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends libsimde-dev; }

model: .venv/.ready
	$(BIN)/python -m qcore models --prepare smollm2-135m
	$(BIN)/python -m qcore models --prepare smollm2-135m-dithered

# Compiled on first use otherwise; without a compiler quantized layers run in plain torch, and the dashboard says so.
kernels: .venv/.ready
	-$(BIN)/python -m qcore.kernels.build

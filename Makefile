# `make` alone prints the targets.  Each target creates .venv and installs what it needs.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# An extra index for CPU-only torch wheels: make TORCH_INDEX=URL demo
TORCH_INDEX ?=
PIP_FLAGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)
WORKERS ?= 2
# One thread a process: two processes with two threads each are slower than two with one.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -rs --durations 15

APT_PACKAGES := chromium bubblewrap qemu-system-arm gcc-arm-none-eabi

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lab check release grade bench docs clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "tinyml_edu needs Python 3.11 or newer; install one and run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not create $(VENV); on Debian run: sudo apt-get install python3-venv" >&2; exit 1; }

# One stamp per extra; `dev` contains the others, but not `peers`.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[$*]"
	@touch $@

setup: $(VENV)/.installed-dev  ## system packages for browser, sandbox and cross-check tests (Debian as root), then the environment
	@missing=""; for p in $(APT_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then echo "system packages: all present"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	else echo "optional system packages are missing; to install them type: sudo apt-get install --no-install-recommends$$missing"; fi

demo: $(VENV)/.installed-mcu  ## the main job end to end on embedded data
	$(BIN)/tinyml demo

test: $(VENV)/.installed-dev  ## library and pipeline tests, under 15 minutes on 2 cores
	$(PYTEST) -m "not slow and not browser" tests tinyml_edu

test-all: $(VENV)/.installed-dev  ## everything, under 60 minutes
	$(PYTEST) tests tinyml_edu

lab: $(VENV)/.installed-labs  ## JupyterLab on labs/
	$(BIN)/jupyter lab --notebook-dir=labs

check: $(VENV)/.installed-dev  ## lint, types, labs up to date, links, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tinyml_edu.grading.release --check
	$(PYTEST) tests/repository

release: $(VENV)/.installed-dev  ## rebuild labs/ from solutions/
	$(BIN)/python -m tinyml_edu.grading.release

grade: $(VENV)/.installed-labs  ## grade the sample class
	$(BIN)/python -m tinyml_edu.grading.sample lab00 .build/sample_class
	$(BIN)/tinyml grade run lab00 --submissions .build/sample_class --csv .build/grades.csv --json .build/grades.json --unsafe-no-sandbox

bench: $(VENV)/.installed-dev $(VENV)/.installed-peers  ## run benchmarks/ and write docs/results.json
	$(BIN)/python -m benchmarks.run

clean:  ## remove the environment and what was built (not the grading records)
	rm -rf $(VENV) .build build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis

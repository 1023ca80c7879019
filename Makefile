# Everything here makes its own environment first: .venv with the exact versions of constraints.txt.
#   make PYTHON=python3.12 ...     another interpreter (3.11 or newer)
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu ...    PyTorch from there (the CPU build is 10 times smaller)
#   make test ARGS='-k storage'    more arguments for pytest
PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
INSTALLED := .venv/.installed
S3_SERVER := .cache/swift-venv/.installed
# a small pretrained model; where the registry is out of reach its tests are skipped with a warning
TEACHER := .cache/teacher/.fetched
# how long every file and test took
DURATIONS := --durations-file=.cache/ci/durations
# of pip's report only what takes time
PIP_PROGRESS := sed -u -n -E -e 's/^ *Downloading ([^-]+)-([^-]+)-.*(\([0-9.]+ [MG]B\))/  downloading \1 \2 \3/p' \
  -e 's/^ *Installing collected packages.*/  installing/p'

.PHONY: help quickstart test drills gpu bench lint format clean distclean

help:  ## what can be made
	@sed -n -E 's/^([a-z]+):[^#]*## (.*)/make \1|\2/p' Makefile | column -t -s '|'

quickstart: $(INSTALLED)  ## train a small GPT on this machine and show what came of it
	$(BIN)/raygpt quickstart

test: $(INSTALLED) $(S3_SERVER) $(TEACHER)  ## all tests but drills and GPU tests
	$(BIN)/pytest tests -m 'not drill and not gpu and not long' -n 2 --dist loadgroup $(DURATIONS)-test.txt $(ARGS)

drills: $(INSTALLED) $(S3_SERVER) $(TEACHER)  ## kills, faults and whole jobs (LONG=1: the long ones too)
	$(BIN)/pytest tests/drills $(if $(LONG),,-m 'not long') -n 2 --dist loadfile --no-loadscope-reorder \
	  $(DURATIONS)-drills.txt $(ARGS) || [ $$? -eq 5 ]

gpu: $(INSTALLED)  ## tests that need a CUDA device
	$(BIN)/pytest tests/gpu $(ARGS) || [ $$? -eq 5 ]

bench: $(INSTALLED)  ## measure speed; figures go to benchmarks/
	@for script in benchmarks/bench_*.py; do echo "$$script"; $(BIN)/python "$$script" $(ARGS); done

lint: $(INSTALLED)  ## style, floors and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(INSTALLED)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches; runs and environments stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache build raygpt.egg-info
	find raygpt tests jobs benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## remove the environments as well
	rm -rf .venv .cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raygpt needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": set PYTHON=python3.12, for example.")'
	@test -x $(BIN)/python || { echo "making .venv (once; a few minutes, most of it downloads)"; $(PYTHON) -m venv .venv; }
	@command -v nvidia-smi >/dev/null || test -n "$(TORCH_INDEX)" || \
	  echo "  no NVIDIA GPU here: TORCH_INDEX=https://download.pytorch.org/whl/cpu saves a download of some GB where it is not cached"
	@if test -n "$(TORCH_INDEX)"; then $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --index-url '$(TORCH_INDEX)' torch | $(PIP_PROGRESS); fi
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' | $(PIP_PROGRESS)
	@touch $@ && echo "  .venv is ready"

$(S3_SERVER): tests/s3_server.py
	@$(BIN)/python tests/s3_server.py install
	@touch $@

$(TEACHER): tests/teacher_model.py
	@$(BIN)/python tests/teacher_model.py && touch $@ || echo "  the teacher cannot be fetched: its tests will be skipped"

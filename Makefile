# make demo: install, and compare balancing methods on real handwriting (a few minutes on two cores)
# make test: install everything, check and run all tests

PYTHON ?= python3
VENV ?= .venv
# Any PyTorch from 2.6 will do: make demo TORCH=torch
TORCH ?= torch==2.13.0
DEMO ?= runs/demo

BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/bench.stamp
	$(BIN)/equipoise compare digits --seeds 3 --workers 2 --out $(DEMO)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

$(VENV)/torch.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'equipoise needs Python 3.10 or newer as $(PYTHON); name another one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo 'This Python has no venv; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/torch.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/bench.stamp

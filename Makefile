# make demo: install, and compare balancing methods, and the best fixed weights, on real handwriting (a few minutes on
# two cores)
# make test: install everything, check and run the tests
# make test-all: those that only a release needs, too, the site and the archives
# make docs: the site, in docs/_build/html
# make leaderboard: all methods over the problems that need no download; hours, gone on with when stopped
# make bench: install, and measure what balancing costs, beside other libraries

PYTHON ?= python3
VENV ?= .venv
# Any PyTorch from 2.6 will do: make demo TORCH=torch
TORCH ?= torch==2.13.0
# Tests and benchmarks want torchvision as well, of the same build.
TORCH_VISION ?= torch torchvision
DEMO ?= runs/demo

BIN := $(VENV)/bin
TEST_BIN := $(VENV)-test/bin

.PHONY: demo test test-all test-archive test-lowest test-newest docs leaderboard lint system bench clean

demo: $(VENV)/installed
	$(BIN)/equipoise compare digits --out $(DEMO)

test: lint system
	OMP_NUM_THREADS=1 $(TEST_BIN)/python -m pytest -n 2 --dist loadfile

test-all: test docs test-archive
	OMP_NUM_THREADS=1 $(TEST_BIN)/python -m pytest -n 2 --dist loadfile -m release

# The tests of the unpacked source distribution, on what the wheel installs.
test-archive: $(VENV)-test/installed
	rm -rf build/archive
	$(TEST_BIN)/python -m build --quiet --outdir build/archive
	$(TEST_BIN)/python -m pip install --quiet --no-deps --target build/archive/site build/archive/*.whl
	tar -xzf build/archive/*.tar.gz -C build/archive
	cd build/archive/equipoise-*/ && rm -r src && OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/build/archive/site \
		$(abspath $(TEST_BIN))/python -m pytest -q -p no:cacheprovider tests/archive tests/objectives tests/test_methods.py

# The lowest versions that pyproject.toml allows: make test-lowest PYTHON=python3.10
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable '.[test]'
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n 2 --dist loadfile

# The newest there are, prereleases included.
test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --pre --editable '.[test]'
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -n 2 --dist loadfile

docs: $(VENV)-test/installed
	$(TEST_BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html

lint: $(VENV)-test/installed
	$(TEST_BIN)/ruff check
	$(TEST_BIN)/ruff format --check
	$(TEST_BIN)/mypy

# What the tests of shared storage and of the report's page run against; without it they are skipped.
system:
	@if command -v chromium >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium fonts-dejavu-core postgresql >/dev/null; \
	else echo 'Without PostgreSQL and Chromium some tests are skipped: apt install postgresql chromium' >&2; fi

# LibMTL without its requirements, which the tests' environment has.
bench: $(VENV)-test/installed
	$(TEST_BIN)/python -m pip install --quiet --no-deps LibMTL==1.1.5
	TORCH_CPP_LOG_LEVEL=ERROR $(TEST_BIN)/python benchmarks/run.py

leaderboard: $(VENV)-test/installed
	OMP_NUM_THREADS=1 $(TEST_BIN)/python benchmarks/leaderboard.py

clean:
	rm -rf $(VENV) $(VENV)-test build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

$(VENV)/installed: pyproject.toml
	$(call install,$(VENV),$(TORCH),bench)

$(VENV)-test/installed: pyproject.toml
	$(call install,$(VENV)-test,$(TORCH_VISION),test)

# A virtual environment with PyTorch first, so that the requirement of any PyTorch finds the wanted one.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo 'equipoise needs Python 3.10 or newer as $(PYTHON); name another one: make PYTHON=python3.12' >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' || \
	{ echo 'This Python has no venv; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet $(2)
$(1)/bin/python -m pip install --quiet --editable '.[$(3)]'
@touch $(1)/installed
endef

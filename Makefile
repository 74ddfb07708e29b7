# make lab        install once into .venv, then open JupyterLab on the first chapter     (make lab ARGS="--no-browser")
# make test       install once what teachers and developers need, then check everything but ...
# make test-slow  ... the few checks that take many minutes
# make build      build the notebooks from notebooks/source
#
# Another Python: make lab PYTHON=python3.12. Without make, or on Windows: see README.md.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: lab test test-slow build

lab: $(VENV)/lab.stamp
	$(BIN)/course lab $(ARGS)

# One thread for each of two workers: two threads that wait for one another are slow wherever anything else runs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=12

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(PYTEST) -m "not slowest" tests

test-slow: $(VENV)/test.stamp
	$(PYTEST) -m slowest tests

build: $(VENV)/test.stamp
	$(BIN)/course build $(ARGS)

# A stamp is younger than what it was installed from, so that a second run needs no network.
$(VENV)/lab.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[lab]'
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[lab,teach,dev]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps azula
	touch $(VENV)/lab.stamp $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

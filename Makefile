# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 15
# fairseq compiles against the torch of this environment: without build isolation, after torch.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lint bench clean

demo: .venv/installed
	$(BIN)/python data_scripts/demo.py --output demo

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST) --hypothesis-profile explore

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive resmlp_mt data_scripts benchmarks docs

bench: .venv/installed
	$(BIN)/python -m benchmarks.multi30k --data $(DATA) --work $(WORK)

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
	  { echo "resmlp_mt needs Python 3.11.4 or newer, but $(PYTHON) is older: run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) pip setuptools wheel
	$(PIP) torch numpy cython
	$(PIP) --no-build-isolation fairseq-fixed
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

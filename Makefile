# Two commands for a newcomer: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test check fuzz bench soak seedling docs clean

help:
	@echo "make demo     grow the embedded model through all phases (two to three minutes after the install)"
	@echo "make test     run the tests"
	@echo "make check    ruff, mypy --strict, generated documents, tests"
	@echo "make fuzz     the tests once more with new random examples (ARGS picks some)"
	@echo "make bench    run every benchmark; each prints one JSON object on its last line"
	@echo "make soak     1,000 random kills of daemon and workers (hours; ARGS='--kills 50' for fewer)"
	@echo "make seedling rebuild the embedded model (about 15 CPU-minutes) into build/seedling"
	@echo "make docs     regenerate schemas and the job reference"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name yours with: make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/scaler demo grow --workspace demo-workspace $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu' $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m scaler_wizard.specs.documentation --check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu' $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu' --hypothesis-profile=fuzz $(ARGS)

bench: $(READY)
	for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark --json || exit 1; done

soak: $(READY)
	$(BIN)/python scripts/soak.py --json $(ARGS)

seedling: $(READY)
	$(BIN)/python scripts/build_seedling.py --out build/seedling

docs: $(READY)
	$(BIN)/python -m scaler_wizard.specs.documentation --write

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache

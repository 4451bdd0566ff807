# One verb per chore. `make run` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NODE   := .sprawl

.PHONY: setup setup-test run demo test lint types format bench simulate campaign lock clean

setup: $(VENV)/.run
setup-test: $(VENV)/.test

$(VENV)/.run: requirements/run.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run requirements/test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.lock
	@touch $@

run: setup
	$(BIN)/sprawl serve --home $(NODE)

demo: setup
	$(BIN)/sprawl demo --home $(NODE)

test: setup-test lint types
	$(BIN)/python -m pytest -m "not slow"

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup-test
	$(BIN)/mypy

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Hashed locks without index lines; the newest versions that pyproject.toml allows.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet uv
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group build pyproject.toml -o requirements/run.lock
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group build --group test --group lint pyproject.toml -o requirements/test.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

bench: setup-test
	$(BIN)/python bench/run.py --save

# One seed: make simulate SEED=7 RUNS=1
SEED ?= 0
RUNS ?= 300
simulate: setup-test
	$(BIN)/python -m tests.simulation.run --seed $(SEED) --runs $(RUNS)

# The slow proofs; the dated report under docs/reports is committed.
campaign: setup-test
	$(BIN)/python -m tests.campaign

# One verb per chore. `make run` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NODE   := .sprawl

.PHONY: setup setup-test setup-fuzz setup-campaign run demo test lint types format docs bench simulate fuzz campaign lock clean

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

# atheris has wheels for some Pythons only, so it is not among what the everyday tests need.
setup-fuzz: setup-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.lock

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

# The reference pages from the code, then the whole site in build/site, with warnings as errors.
docs: setup-test
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Hashed locks without index lines; the newest versions that pyproject.toml allows.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet uv
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group build pyproject.toml -o requirements/run.lock
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group build --group test --group lint --group docs pyproject.toml -o requirements/test.lock
	$(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group fuzz -o requirements/fuzz.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

bench: setup-test
	$(BIN)/python bench/run.py --save

# One world: make simulate SEED=7 RUNS=1. Started again with the same RESULTS, a set that was stopped goes on.
SEED ?= 0
RUNS ?= 300
PROCESSES ?= 2
RESULTS ?=
simulate: setup-test
	$(BIN)/python -m tests.simulation.run --seed $(SEED) --runs $(RUNS) --processes $(PROCESSES) $(if $(RESULTS),--results $(RESULTS))

# Ten minutes for each parser; build/fuzz keeps what was learnt, so that a stopped one goes on.
SECONDS_EACH ?= 600
fuzz: setup-fuzz
	$(BIN)/python -m tests.fuzz.campaign --seconds $(SECONDS_EACH)

# What the slow tests need beside Python: a browser.
setup-campaign: setup-fuzz
	@test -x /usr/bin/chromium || apt-get install --yes --quiet --no-install-recommends chromium fonts-dejavu-core

# The slow proofs; the dated report under docs/reports is committed.
campaign: setup-campaign
	$(BIN)/python -m tests.campaign

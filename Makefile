# One verb per chore. `make run` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NODE   := .sprawl

.PHONY: setup setup-test setup-kafka setup-kafkajs setup-fuzz setup-campaign run demo test lint types format docs bench simulate differential fuzz campaign lock clean

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

# Apache Kafka (the broker to compare with, its tools, Connect, Streams) from its published jars, once, each checked by its digest.
KAFKA := build/kafka
setup-kafka: $(KAFKA)/.ready

$(KAFKA)/.jars: tests/companions/kafka/pom.xml tests/companions/kafka/jars.sha256
	@test -n "$$(command -v mvn)" -a -n "$$(command -v javac)" || \
		apt-get install --yes --quiet --no-install-recommends openjdk-17-jdk-headless maven
	rm -rf $(KAFKA)
	mvn --quiet --batch-mode --file tests/companions/kafka/pom.xml dependency:copy-dependencies \
		-DincludeScope=runtime -DoutputDirectory=$(CURDIR)/$(KAFKA)/lib
	cd $(KAFKA)/lib && sha256sum --check --quiet $(CURDIR)/tests/companions/kafka/jars.sha256
	@touch $@

$(KAFKA)/.ready: $(KAFKA)/.jars $(wildcard tests/companions/kafka/*.java)
	javac -d $(KAFKA)/classes -cp "$(KAFKA)/lib/*" $(filter %.java,$^)
	@touch $@

# A Kafka client in JavaScript; those in Go are the campaign's.
CLIENTS := build/clients
setup-kafkajs: $(CLIENTS)/node_modules/.ready

$(CLIENTS)/node_modules/.ready: tests/companions/kafkajs/package.json tests/companions/kafkajs/package-lock.json
	@test -n "$$(command -v npm)" || apt-get install --yes --quiet --no-install-recommends nodejs npm
	mkdir -p $(CLIENTS)
	cp $^ $(CLIENTS)
	cd $(CLIENTS) && npm ci --silent --no-audit --no-fund
	@touch $@

$(CLIENTS)/referee: $(wildcard tests/companions/go/*)
	cd tests/companions/go && go build -trimpath -o $(CURDIR)/$@ .

# atheris has wheels for some Pythons only, so it is not among what the everyday tests need.
setup-fuzz: setup-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.lock

run: setup
	$(BIN)/sprawl serve --home $(NODE)

demo: setup
	$(BIN)/sprawl demo --home $(NODE)

test: setup-test setup-kafka setup-kafkajs lint types
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

bench: setup-test setup-kafka
	$(BIN)/python bench/run.py --save

# One world: make simulate SEED=7 RUNS=1. Started again with the same RESULTS, a set that was stopped goes on.
SEED ?= 0
RUNS ?= 300
PROCESSES ?= 2
RESULTS ?=
simulate: setup-test
	$(BIN)/python -m tests.simulation.run --seed $(SEED) --runs $(RUNS) --processes $(PROCESSES) $(if $(RESULTS),--results $(RESULTS))

# The same random sequences of calls against Sprawl and a real Apache Kafka; one of them: make differential SEED=7 SEQUENCES=1.
SEQUENCES ?= 500
differential: setup-test setup-kafka
	$(BIN)/python -m tests.conformance.kafka_differential --sequences $(SEQUENCES) --seed $(SEED)

# Ten minutes for each parser; build/fuzz keeps what was learnt, so that a stopped one goes on.
SECONDS_EACH ?= 600
fuzz: setup-fuzz
	$(BIN)/python -m tests.fuzz.campaign --seconds $(SECONDS_EACH)

# What the slow tests need beside Python: a browser, and a Go.
setup-campaign: setup-fuzz setup-kafka setup-kafkajs $(CLIENTS)/referee
	@test -x /usr/bin/chromium || apt-get install --yes --quiet --no-install-recommends chromium fonts-dejavu-core

# The slow proofs; the dated report under docs/reports is committed.
campaign: setup-campaign
	$(BIN)/python -m tests.campaign

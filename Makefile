# Everything runs in .venv, which needs only Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
export XLA_PYTHON_CLIENT_PREALLOCATE = false

# Files and tests go to whichever worker is free.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

.PHONY: demo test test-all test-long check lint types links clean clean-cache

# Rates at which both come near the paper's accuracies within minutes on two cores, and seeds enough to tell their initial models apart.
DEMO = --seeds 5 --set evaluate_every=25 --set stages.0.update.epochs=1 --set stages.0.update.learning_rate=0.1 \
	--set personalization.optimizer.learning_rate=0.05 --set personalization.epochs=10

demo: .venv/installed ## Train, personalize and report on the embedded data
	$(BIN)/headstart run fedavg $(DEMO) --set stages.0.rounds=80 --out runs/demo/fedavg
	$(BIN)/headstart run personalized_fedavg $(DEMO) --set stages.0.rounds=50 --set stages.1.rounds=30 \
		--set stages.1.update.learning_rate=0.05 --set stages.1.server.learning_rate=0.003 --out runs/demo/personalized_fedavg
	$(BIN)/headstart report runs/demo/fedavg runs/demo/personalized_fedavg --out runs/demo/report.html

# Most of the time of the quick tests is compilation; `make test-all` compiles as users do.
test: .venv/tested ## The quick tests: units, doctests, and one real case of all that starts processes
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST)

test-all: .venv/tested ## Every test but the long ones
	$(PYTEST) -m "not long"

test-long: .venv/tested ## Kills of every kind of command, deployments with every fault, the largest studies
	HEADSTART_KILLS=10 $(PYTEST) -m long

check: lint types links ## What CI runs
	$(MAKE) test-all

lint: .venv/tested
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/python tests/check_words.py

types: .venv/tested
	$(BIN)/pyright

links: .venv/tested
	$(BIN)/python tests/check_links.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "headstart needs Python 3.11 or newer; got $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

clean: clean-cache
	rm -rf .venv runs

clean-cache: ## Compiled programs, which the tests keep from session to session
	rm -rf .cache

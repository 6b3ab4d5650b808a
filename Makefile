# Hooks, CI and people run these and nothing else.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## make .venv, only when the lock changed
	@PYTHON=$(PYTHON) sh scripts/setup.sh

demo: setup ## the whole graph on generated audio, some minutes on two cores
	@$(BIN)/aut run --profile demo

test: setup ## all tests that need no Docker engine
	@sh scripts/test.sh

check: setup ## lint, format, types, generated files, links between docs and code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/aut params --check

golden: setup ## rewrite the golden files; read the diff
	@$(BIN)/pytest tests/golden --golden

bench: setup ## every benchmark, quick
	@for b in $$(ls benchmarks/*.py | sed 's:.*/::; s:\.py$$::' | grep -v '^_'); do \
		$(BIN)/python -m benchmarks.$$b --quick || exit 1; done

up: ## start the platform with Docker; images it builds tell the commit (a GPU: COMPOSE_PROFILES=gpu make up)
	AUT_REVISION=$${AUT_REVISION:-$$(git rev-parse HEAD 2>/dev/null || echo unknown)} docker compose up -d --wait

compose-check: setup ## the platform's files, with or without an engine
	@$(BIN)/pytest tests/contract/test_compose.py

test-platform: setup ## start the platform and break it; needs a Docker engine
	@$(BIN)/pytest tests/platform -v

.PHONY: help setup demo test check golden bench up compose-check test-platform

# Everything a developer does. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo test lint lint-rules lint-format lint-types lint-layers lint-web test-web format screenshots bench clean

BIN := .venv/bin
ARGS ?=

help: ## Show this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## Install what is missing: Debian packages (asks for sudo where needed) and the project into .venv
	@deploy/setup/setup runtime

setup-test: # the servers that the tests start
	@deploy/setup/setup runtime test

demo: setup ## Back up, change, destroy and restore a real virtual machine and containers (3 minutes)
	@$(BIN)/lab-backup demo

test: setup-test ## Run all tests, those with real guests included; ARGS="-k name" chooses
	$(BIN)/pytest $(ARGS)

lint: lint-rules lint-format lint-types lint-layers lint-web ## Check rules, format, types and layers

lint-rules:
	$(BIN)/ruff check

lint-format:
	$(BIN)/ruff format --check

lint-types:
	$(BIN)/mypy

lint-layers:
	$(BIN)/lint-imports --no-logo

WEB = cd web && PATH="$$(cat ../.venv/.node):$$PATH"

lint-web:
	$(WEB) npm run --silent types
	$(WEB) npm run --silent lint

test-web: setup ## Run the tests of the web interface's parts
	$(WEB) npm run --silent test

screenshots: setup-test ## Make pictures of every page, light, dark and on a phone, in web/screenshots
	$(BIN)/python tests/support/screenshots.py web/screenshots

format: setup ## Format the code and mend what can be mended by a tool
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: ## Compare with other tools and write benchmarks/RESULTS.md (an hour; nothing else should run)
	@deploy/setup/setup runtime bench
	$(BIN)/python benchmarks/run.py $(ARGS)

clean: ## Remove caches and build results; .venv and the guest in the user's cache stay
	rm -rf dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The newcomer's commands: `make run` and `make test`. Everything else is for people who work on the code.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint format
run: $(VENV)/.runtime
	@exec $(BIN)/python -m newsletter.running --port $(PORT)

test: $(VENV)/.development
	@$(BIN)/python -m pytest

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m newsletter.embedded $(BIN)/mypy .
	$(BIN)/python -m newsletter.embedded $(BIN)/python manage.py makemigrations --check --dry-run

format: $(VENV)/.development
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

$(VENV)/.runtime: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/a/newer/python3.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what the product needs (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements-dev.txt
	@echo "Installing what the tests need (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

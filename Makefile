# The newcomer's commands: `make run` and `make test`. Everything else is for people who work on the code.
# PORT=9000 moves the site; PYTHON=/path/to/python3 chooses the interpreter (3.11 or newer) that .venv is made from.
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && exit; done; echo python3)

# Settings as a server has them, for the checks that look at a deployment.
SERVER := DEMO=0 SITE_URL=https://news.example.org EDGE_URL=https://edge.example.org TRUSTED_PROXIES=1 \
	SECURE_HSTS_INCLUDE_SUBDOMAINS=1 SECURE_HSTS_PRELOAD=1 EMAIL_URL=smtps://user:password@mail.example.org \
	DEFAULT_FROM_EMAIL=news@example.org

.PHONY: run test lint format bench
run: $(VENV)/.runtime
	@exec $(BIN)/python -m newsletter.running --port '$(PORT)'

test: $(VENV)/.development
	@$(BIN)/python -m tests.browser
	@$(BIN)/python -m pytest

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m newsletter.embedded $(BIN)/mypy .
	$(BIN)/python -m newsletter.embedded $(BIN)/python manage.py makemigrations --check --dry-run
	$(SERVER) $(BIN)/python -m newsletter.embedded $(BIN)/python manage.py check --deploy --fail-level WARNING
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint Dockerfile

bench: $(VENV)/.development
	@$(BIN)/python -m benchmarks

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.runtime: requirements.txt constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "Python 3.11 or newer is needed, and $(PYTHON) is not; set PYTHON=/path/to/a/newer/python3." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv." >&2; exit 1; }
	@echo "Installing what the product needs (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements-dev.txt
	@echo "Installing what the tests need (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

# Two commands do everything, set-up included, and are safe to repeat: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The versions that CI installs; `make newest` tries the newest ones that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export ACT_HOME ?= $(CURDIR)/.act
export DAGSTER_DISABLE_TELEMETRY = 1
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test unit newest ui setup hooks lint bench constraints clean

demo: $(STAMP)
	@$(BIN)/act run --task pacific --train-size 50

test: $(STAMP)
	@$(BIN)/python $(PYTEST)

unit: $(STAMP)
	@$(BIN)/python $(PYTEST) -m unit

newest:
	@$(MAKE) test VENV=.venv-newest CONSTRAINTS=/dev/null

ui: $(STAMP)
	@DAGSTER_HOME=$$($(BIN)/python -c "from act_assets.home import dagster_home; print(dagster_home())") \
	  $(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $${PORT:-3000}

setup: $(STAMP)

hooks: $(STAMP)
	@$(BIN)/pre-commit install

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/python bench/demo.py

constraints: $(STAMP)
	@$(BIN)/python -m pip freeze --exclude-editable --exclude setuptools --exclude pip | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) .venv-newest .mypy_cache .ruff_cache .pytest_cache

# A Python's own pip may be old and slow. --no-compile: what is used is compiled (and kept, see the exports)
# when it is first imported.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; set PYTHON=')"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[dev]'
	@touch $(STAMP)

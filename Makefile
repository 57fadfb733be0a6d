# `make demo` and `make test` on a fresh clone need Python >= 3.10 and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := protocol tap_core coordinator edge_client deploy
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile
LINTED := $(CODE) tests $(wildcard benchmarks)

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test check bench experiments soak fuzz lint types imports settings install clean

help: ## Print this list.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

demo: $(STAMP) ## Run a whole federation of five devices on this machine; results in demo-out/.
	$(BIN)/tap demo --out demo-out

test: $(STAMP) ## Run all tests.
	$(PYTEST)

check: $(STAMP) lint types imports ## Format, lint, types, import contracts, and all tests with coverage.
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

bench: $(STAMP) ## Measure the overhead of a round beside a bare WebSocket echo.
	$(BIN)/python benchmarks/round_overhead.py

experiments: $(STAMP) ## Run the experiments behind docs/results.md: hours, resumable.
	$(BIN)/python benchmarks/experiments/all.py

soak: $(STAMP) ## Serve a federation under churn, kills and attack for 20 minutes, and compare it with a quiet one.
	$(BIN)/python benchmarks/soak.py

fuzz: $(STAMP) ## Fuzz the protocol for five minutes (Python 3.11 or newer).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python benchmarks/fuzz_protocol.py --seconds 300

lint: $(STAMP) ## Check format and lint rules.
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/ruff check $(LINTED)

types: $(STAMP) ## Check types.
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/confused_names.py

imports: $(STAMP) ## Check the import contracts between the packages.
	$(BIN)/lint-imports

settings: $(STAMP) ## Draw docs/settings.md anew.
	$(BIN)/python -m tap_core.settings.document > docs/settings.md

install: $(STAMP) ## Set up .venv.

clean: ## Remove .venv and the demo's output.
	rm -rf $(VENV) demo-out

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit("error: Python %s is too old; tap-edge needs 3.10 or newer (make PYTHON=python3.11 ...)" % v if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(STAMP)

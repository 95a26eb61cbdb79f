# `make train` and `make test` work from a fresh checkout.
# Each creates a virtual environment if it is missing or if pyproject.toml has changed: .venv for
# python3.11, .venv-NAME for another interpreter, for example `make test PYTHON=python3.13`.
PYTHON ?= python3.11
PYTHON_ARVIZ_1 ?= python3.13
VENV := .venv$(addprefix -,$(filter-out python3.11,$(notdir $(PYTHON))))
INSTALLED := $(VENV)/.installed

.PHONY: train test lint docs wheel arviz-1 clean
.DEFAULT_GOAL := train

train: $(INSTALLED)  ## train a VAE on MNIST; write scores and pictures to runs/mnist_svi
	$(VENV)/bin/python examples/mnist_svi.py $(ARGS)

test: lint  ## formatting, types and the test suite
	$(VENV)/bin/pytest --numprocesses auto --dist loadgroup $(ARGS)

lint: $(INSTALLED)  ## formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(INSTALLED)  ## the documentation in docs/build/html; tutorials are executed once and cached
	$(VENV)/bin/python -m pip install --progress-bar off --editable ".[docs]"
	$(VENV)/bin/sphinx-build --fail-on-warning --keep-going --builder html docs docs/build/html

wheel: $(INSTALLED)  ## build the wheel and the source distribution in dist/
	$(VENV)/bin/python -m build

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --progress-bar off --editable ".[dev]"
	touch $@

arviz-1: .venv-arviz-1/.installed  ## an interpreter with ArviZ 1.x, for tests/datatree
.venv-arviz-1/.installed:
	$(PYTHON_ARVIZ_1) -m venv .venv-arviz-1
	.venv-arviz-1/bin/python -m pip install --progress-bar off \
		"arviz-base[h5netcdf]>=1" "arviz-stats[xarray]>=1" "arviz-plots[matplotlib]>=1"
	touch $@

clean:  ## remove the virtual environments, caches and build outputs
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache build dist

# Two commands do everything from nothing: `make train` and `make test`.
# Each creates .venv with the package in it when it is missing or pyproject.toml has changed.
PYTHON ?= python3.11
PYTHON_ARVIZ_1 ?= python3.13
INSTALLED := .venv/.installed

.PHONY: train test arviz-1 clean
.DEFAULT_GOAL := train

train: $(INSTALLED)  ## train a VAE on MNIST and write its pictures to runs/mnist_svi
	.venv/bin/python examples/mnist_svi.py $(ARGS)

test: $(INSTALLED)  ## formatting, types, and the test suite
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest --numprocesses auto $(ARGS)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --progress-bar off --editable ".[dev]"
	touch $@

arviz-1: .venv-arviz-1/.installed  ## a second interpreter with ArviZ 1.x, for tests/datatree/test_inspection.py
.venv-arviz-1/.installed:
	$(PYTHON_ARVIZ_1) -m venv .venv-arviz-1
	.venv-arviz-1/bin/python -m pip install --progress-bar off \
		"arviz-base[h5netcdf]>=1" "arviz-stats[xarray]>=1" "arviz-plots[matplotlib]>=1"
	touch $@

clean:  ## remove the virtual environment and what tools left behind
	rm -rf .venv .venv-arviz-1 .mypy_cache .pytest_cache .ruff_cache build dist

# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMMA := ,

.PHONY: install demo test lint types clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) 'torch>=2.11$(COMMA)<2.14')
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.triton: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,triton]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/laconic compare shakespeare --methods ddp,dgc,powersgd,diloco,streaming-diloco --workers 2 --link 20mbit

lint: install
	$(BIN)/ruff check laconic tests benchmarks examples
	$(BIN)/ruff format --check laconic tests benchmarks examples

types: install
	$(BIN)/mypy

# What starts processes of its own runs alone, after the rest has used all cores.
ALONE := processes or root or browser

test: lint types $(VENV)/.triton
	$(BIN)/python -m pytest -n auto -m "not ($(ALONE))"
	$(BIN)/python -m pytest -m "$(ALONE)"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache runs

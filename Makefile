# The README's two commands, and what CI runs. Each is also there as plain pip and python lines.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-slow lint docs clean

demo: $(VENV)/demo
	$(BIN)/python train.py binarize=ffnn values=pm1

test: $(VENV)/dev lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

# the hooks of .pre-commit-config.yaml, on everything
lint: $(VENV)/dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

docs: $(VENV)/dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs build/docs
	@echo "build/docs/index.html"

# torch first, by its exact version: what another package asks for as a range may be a newer and much larger build
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	touch $@

# built anew when the kernels have changed
KERNELS = $(wildcard bitmaps/packed/native/*.[ch] bitmaps/packed/native/*/*.[ch])

$(VENV)/demo: $(VENV)/torch pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[offline]'
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)

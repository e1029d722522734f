# The two commands of the README, `make demo` and `make test`; each sets up what it needs.
# Another Python: make test PYTHON=python3.13

PYTHON ?= python3
VENV := .venv/$(shell $(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
SHIM := $(wildcard jax_trn3/pjrt/shim/*)

.PHONY: demo test lint bench wheel clean

demo: export JAX_PLATFORMS := trn3,cpu
demo: $(VENV)/ready
	$(BIN)/python examples/hello.py
	$(BIN)/python -m examples.train_gpt $(ARGS)

test: $(VENV)/ready lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	for file in dispatch transfer train_step; do $(BIN)/python benchmarks/$$file.py || exit 1; done

wheel: $(VENV)/ready
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

# One environment for each Python version; the shim is built in place, and fits all of them.
$(VENV)/ready: pyproject.toml setup.py $(SHIM)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info jax_trn3/pjrt/*.so demo_output

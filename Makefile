# The two commands of the README, `make demo` and `make test`; each sets up what it needs.
# Another Python: make test PYTHON=python3.13

PYTHON ?= python3
VENV := .venv/$(shell $(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
SHIM := $(wildcard jax_trn3/pjrt/shim/*)

.PHONY: demo test lint bench sanitize fuzz wheel clean

demo: export JAX_PLATFORMS := trn3,cpu
demo: $(VENV)/ready
	$(BIN)/python examples/hello.py
	$(BIN)/python -m examples.train_gpt $(ARGS)

test: $(VENV)/ready lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	for file in dispatch compilation transfer train_step quantize mx_dot attention fidelity pallas_values pallas_checks kernels; do $(BIN)/python benchmarks/$$file.py || exit 1; done

# The tests of the shim with a copy of the package under the address and undefined-behaviour
# sanitizers; processes that the tests start inherit it all. Leaks are the fuzzer's matter: Python and
# XLA keep too much until the end. libstdc++ is loaded early for the sanitizer's sake.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
SANITIZED := LD_PRELOAD="$(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONPATH=build/sanitize PYTHONSAFEPATH=1
SANITIZED_CALLS ?= 100000

sanitize: $(VENV)/ready
	$(BIN)/pip install --quiet 'setuptools>=77'
	CFLAGS="$(SANITIZE) -fno-omit-frame-pointer" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py \
		--quiet build --build-base build/sanitize-objects --build-lib build/sanitize
	$(SANITIZED) $(BIN)/python -c "from jax_trn3.pjrt import _shim; assert 'sanitize' in _shim.__file__"
	$(SANITIZED) $(BIN)/python -m pytest tests/pjrt tests/platform $(ARGS)
	$(SANITIZED) $(BIN)/python tools/fuzz_capi.py --calls $(SANITIZED_CALLS) --growth 400

# A million drawn calls of the C API; another million: make fuzz SEED=1
SEED ?= 0
fuzz: $(VENV)/ready
	$(BIN)/python tools/fuzz_capi.py --calls 1000000 --seed $(SEED)

wheel: $(VENV)/ready
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

# One environment for each Python version; the shim is built in place, and fits all of them.
$(VENV)/ready: pyproject.toml setup.py $(SHIM)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info jax_trn3/pjrt/*.so demo_output

# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo

.PHONY: demo test test-slow check check-systems fast docs attack clean

demo: $(VENV)/.demo
	$(BIN)/vitcx demo --out $(OUT)

# The tests of a file stay together: they share what they made.
TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile

# The fast tests: minutes on two cores.
test: check
	$(TESTS) -m "not slow"

# The others: exports of every family, benchmarks, attacks, the embedded model's accuracy.
test-slow: $(VENV)/.dev
	$(TESTS) -m slow

# Style, types, and the layers between packages.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/vitcx benchmarks tools
	$(BIN)/lint-imports

# Types as Windows and macOS have them: a minute. What only Linux has must be asked for first.
check-systems: $(VENV)/.dev
	for system in win32 darwin; do $(BIN)/mypy --platform $$system src/vitcx || exit 1; done

# The tests that need neither torch nor more than a minute.
fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" tests/runtime tests/kernels

# The documentation as a site, from site/README.html on. A warning is an error.
docs: $(VENV)/.dev
	$(BIN)/sphinx-build -q -W --keep-going -c docs . site

# Bad requests, mutated pictures and bundles, silent and slow connections, beside an honest client
# of a server on loopback; then four times what it can do, and a job that is killed and resumed:
# about an hour. `make attack SCALE=0.1 ATTACK_SECONDS=240 OVERLOAD_SECONDS=60 KILLS=2` for a tenth.
SCALE ?= 1
ATTACK_SECONDS ?= 2400
OVERLOAD_SECONDS ?= 600
KILLS ?= 20
attack: $(VENV)/.dev
	$(BIN)/python -m benchmarks.attack --scale $(SCALE) --seconds $(ATTACK_SECONDS) \
		--out out/attack/attack.json
	$(BIN)/python -m benchmarks.load overload --seconds $(OVERLOAD_SECONDS) \
		--out out/attack/overload.json
	$(BIN)/python -m benchmarks.kill_resume docs/images --shard-size 1 --kills $(KILLS) \
		--out out/attack/kill_resume.json

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu,plot]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# Without what it depends on: a TensorRT of its own version, from another host.
	$(BIN)/python -m pip install --quiet --no-deps tensorrt-stubs
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build out site src/*.egg-info

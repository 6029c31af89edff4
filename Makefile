# Every target creates .venv by itself. `make demo` and `make test` are all one needs to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# An editable install knows the packages that existed when it was made, hence the __init__ files.
SOURCES := pyproject.toml constraints.txt $(wildcard native/* statescan/*/__init__.py statescan/*/*/__init__.py)

.PHONY: demo test test-full dev lint bench bench-quick docs clean

demo: $(VENV)/.demo  ## train a byte-level model on the Python standard library's source, and let it speak
	$(BIN)/statescan demo

# Two workers of one thread each: the suite is many small tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --durations=15

test: $(VENV)/.dev  ## under 15 minutes on two cores
	$(PYTEST) -m "not full and not gpu"

test-full: $(VENV)/.dev  ## under an hour on two cores
	$(PYTEST) -m "not gpu"

dev: $(VENV)/.dev  ## everything a contributor needs, and the pre-commit hook
	$(BIN)/pre-commit install

lint: $(VENV)/.dev  ## format, lint, spelling, import layers, types
	$(BIN)/pre-commit run --all-files

bench: $(VENV)/.dev  ## over an hour, idle machine; the first run builds llama.cpp; tables in benchmarks/results/
	$(BIN)/python -m benchmarks.run

bench-quick: $(VENV)/.dev  ## two minutes: fewer layers, shorter lengths
	$(BIN)/python -m benchmarks.run --quick

docs: $(VENV)/.dev  ## the pages that are generated from declarations
	$(BIN)/python docs/catalogue.py

# Without an NVIDIA driver torch's CPU build is enough, where the package index offers one: it is gigabytes smaller.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@if ! command -v nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) "torch==$(TORCH)+cpu" 2>/dev/null || echo "the package index has no CPU build of torch $(TORCH): taking the default build"; fi
	$(PIP) "torch==$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	$(PIP) --editable ".[train,plots]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) --editable ".[train,plots,hub,peft,series,rl,images,sweep,sklearn,bench,dev]"
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist

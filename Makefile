# build, demo, test, check and bench need only Python >= 3.11, a C compiler and the package registries; each makes what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODULES := $(shell find anna cloudburst bench demos -name '*.pyx')
SOURCES := $(MODULES) $(shell find anna cloudburst bench demos -name '*.pxd') setup.py pyproject.toml
SHELL := /bin/bash

.PHONY: build demo test sim check bench anomalies vm clean
.DEFAULT_GOAL := help

help:
	@echo "make demo [ARGS=--quick]   build, start a local cluster, run the Twitter clone, write its picture"
	@echo "make test [ARGS=-k name]   build, run the tests"
	@echo "make sim [SEEDS=1000]      build, simulate that many clusters and their faults, each from a seed"
	@echo "make check                 ruff, mypy --strict, import directions"
	@echo "make bench [ARGS=store]    measure against named peers in one run"
	@echo "make anomalies [ARGS=skew] count what goes wrong at each level of consistency, beside published figures"
	@echo "make vm                    boot a real machine under QEMU's emulation that runs a built file (minutes; root, Debian)"
	@echo "make build                 make $(VENV) with everything installed, editable"

build: $(VENV)/.built

# The log is shown only when something fails: a first build takes minutes and prints much that helps nobody. Whoever
# watches sees how far it is.
$(VENV)/.built: $(SOURCES)
	@command -v $(PYTHON) >/dev/null || { echo "build: $(PYTHON) was not found; set PYTHON=…"; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "build: Python >= 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V); set PYTHON=…"; exit 3; }
	@command -v $${CC:-cc} >/dev/null || { echo "build: a C compiler is needed (Debian: apt install build-essential)"; exit 3; }
	@[ -x $(BIN)/python ] || { echo "build: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "build: installing packages and compiling the Cython modules (some minutes the first time)"
	@( $(BIN)/pip install -q --disable-pip-version-check "setuptools>=77" "cython>=3.1" wheel \
	  && CLOUDBURST_EXTENSIONS=later $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev,plots]' \
	  && $(BIN)/python setup.py -q build_ext --inplace ) > $(VENV)/build.log 2>&1 & builder=$$!; trap "kill $$builder" INT TERM; \
	while [ -t 1 ] && sleep 1 && kill -0 $$builder 2>/dev/null; do \
	  printf '\rbuild: %d modules translated, %d compiled, of $(words $(MODULES)) ' \
	    $$(find anna cloudburst bench demos -name '*.c' | wc -l) $$(find build -name '*.o' 2>/dev/null | wc -l); done; if [ -t 1 ]; then echo; fi; \
	wait $$builder || { tail -40 $(VENV)/build.log; echo "build: failed; the whole log is $(VENV)/build.log"; exit 3; }
	@touch $@

demo: build
	@$(BIN)/cb demo retwis $(ARGS)

test: build
	@$(BIN)/python -m pytest $(ARGS)

SEEDS ?= 1000

sim: build
	@$(BIN)/python -m tests.sim --seeds $(SEEDS) $(ARGS)

check: build
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

bench: build
	@$(BIN)/python -m bench $(ARGS)

anomalies: build
	@$(BIN)/python -m bench.anomalies $(ARGS)

vm: build
	@$(BIN)/python tests/vm/boot.py

clean:
	rm -rf build out *.egg-info $(VENV)/.built
	find anna cloudburst bench demos -name '*.so' -delete

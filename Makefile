# make demo     a virtual environment in .venv, then the built-in example: `pefttool run --adapter lora`
# make test     ruff, mypy and the tests, all but the slow ones: what CI runs
# make test-all the slow ones too, and new random cases          make lint     ruff and mypy alone
# make gates    every Triton kernel compiled for five kinds of card, its machine code held against limits (in make test)
# make bench    pefttool against transformers.Trainer + peft + bitsandbytes, side by side: about 20 minutes
# make torture  200 kills of runs that go on, each of which must end as the undisturbed one: about 10 minutes
# make examples the ten examples with their baselines, three seeds each; docs/results.md is written anew
# make docs     docs/hooks.md, docs/options.md and docs/matrix.md from the code
# make clean    removes .venv and the tools' caches; runs/ and the user's cache folder stay
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -c constraints.txt
FETCH := $(BIN)/pefttool examples fetch

# A file of tests on each core, with one thread: threads that wait for each other make a busy machine ten times slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

.PHONY: demo test test-all lint gates bench torture examples docs fetch clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(FETCH) smollm2-135m-instruct chatterbot-english
	$(BIN)/pefttool run --adapter lora

test: lint fetch
	$(PYTEST) -m 'not slow'

test-all: lint fetch
	HYPOTHESIS_PROFILE=searching $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gates: $(VENV)/.dev
	$(BIN)/python kernels/bench/gates.py

bench: $(VENV)/.dev
	$(FETCH) smollm2-135m-instruct all-minilm-l6-v2 movie-snippets
	$(BIN)/python benchmarks/side_by_side.py --markdown docs/benchmarks.md

torture: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/torture.py --kills 200

examples: fetch
	$(BIN)/python examples/run.py

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

# What the tests of examples are made from. Without some of it (no apt-get, say) those tests are skipped, and say so.
fetch: $(VENV)/.dev
	-$(FETCH) --all

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# Torch first and alone: next to other requirements, pip may choose a build that brings gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: pefttool needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[examples]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e '.[dev,all,examples]'
	touch $@

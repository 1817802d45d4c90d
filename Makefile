# Every target sets up what it needs in .venv from nothing but Python 3.11+ and pip, and does so once.
#
#   make run                                   ask the shipped example clip a question
#   make run VIDEO=clip.mp4 ASK="When ...?"    ask any video
#   make help                                  the other targets

VIDEO   ?= demo/examples/photographs.mp4
ASK     ?= When does the cat appear?
PICTURE ?= out.png
ARGS    ?=

# What to install torch from: a version, a wheel, or an index of CPU or other builds
# (TORCH="torch torchvision --index-url ..."). Both in one call, so that pip picks a matching pair.
TORCH        ?= torch torchvision
PIP_FLAGS    ?= --quiet --quiet --disable-pip-version-check --no-input
PYTEST_FLAGS ?=
WORKERS      ?= 2
PYTHON       ?= $(shell for p in python3 python python3.13 python3.12 python3.11 python3.14; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)

VENV := .venv
MMSP := .venv-mmsp
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install $(PIP_FLAGS)
say  := @printf '\033[1m==> %s\033[0m\n'

# Handed to the shell as variables, untouched by make, so that quotes, spaces and dollars are safe in them.
export VLM_VIDEO := $(value VIDEO)
export VLM_ASK := $(value ASK)
export VLM_PICTURE := $(value PICTURE)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run demo test check format bench bench-media bench-mmsp bench-training bench-long test-zero soak wheel clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.model ## Ask a video a question: VIDEO=clip.mp4 ASK="When does the dog jump?"
	@$(BIN)/vlm chat "$$VLM_VIDEO" "$$VLM_ASK" --picture "$$VLM_PICTURE" $(ARGS)

demo: $(VENV)/.demo $(VENV)/.model ## Open the chat in a browser
	@$(BIN)/vlm demo $(ARGS)

test: $(VENV)/.dev ## Run the tests (PYTEST_FLAGS="-k media" for some of them)
	@$(MAKE) --no-print-directory $(VENV)/.model || echo "Tests of the default model will be skipped."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_FLAGS)

check: $(VENV)/.dev ## Check format, lint and types
	$(say) "ruff format"
	@$(BIN)/ruff format --check .
	$(say) "ruff check"
	@$(BIN)/ruff check .
	$(say) "mypy"
	@$(BIN)/mypy

format: $(VENV)/.dev ## Format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Measure speed against the rivals (docs/results/bench.json)
	@$(BIN)/python scripts/bench.py $(ARGS)

bench-media: $(VENV)/.dev ## Measure video decoding against the rivals (docs/results/bench-media.json)
	@$(BIN)/python scripts/bench_media.py $(ARGS)

bench-mmsp: $(MMSP)/.ready ## Measure sequence parallelism against the rivals (docs/results/bench-mmsp.json)
	@$(MMSP)/bin/python -m scripts.mmsp $(ARGS)

bench-training: $(VENV)/.dev ## Measure packing and the chunked loss (docs/results/bench-training.json)
	@$(BIN)/python scripts/bench_training.py $(ARGS)

bench-long: $(VENV)/.dev ## Measure memory and time of long prompts (docs/results/bench-long.json; about an hour)
	@$(BIN)/python scripts/bench_long.py $(ARGS)

test-zero: $(VENV)/.dev $(MMSP)/.ready ## Test DeepSpeed's ZeRO, which `make test` leaves out (needs a C++ compiler)
	@OMP_NUM_THREADS=1 $(MMSP)/bin/python -m pytest -q -p no:cacheprovider tests/train/test_zero.py $(PYTEST_FLAGS)

soak: $(VENV)/.dev ## Run the long suites that `make test` leaves out
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout 3600 $(PYTEST_FLAGS)

wheel: $(VENV)/.dev ## Build dist/vlm-*.whl
	@$(BIN)/python -m build --wheel --no-isolation

clean: ## Remove the environments, caches and build output
	rm -rf $(VENV) $(MMSP) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. Each stamp file stands for one finished installation and is renewed when the lists it depends on change.

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(say) "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 \
	    || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@

$(VENV)/.torch: $(VENV)/.python
	$(say) "Installing PyTorch (the largest download, once)"
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(say) "Installing vlm"
	@$(PIP) -e '.[smol]'
	@touch $@

$(VENV)/.model: | $(VENV)/.run
	$(say) "Fetching and converting the backbones of the default model (190 MB, once)"
	@$(BIN)/vlm fetch smol
	@touch $@

$(VENV)/.demo: $(VENV)/.run
	$(say) "Installing the demo"
	@$(PIP) -e '.[smol,demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(say) "Installing the tools for tests and checks"
	@$(PIP) -e '.[dev]'
	@touch $@

# The rivals of bench-mmsp (one of them, DeepSpeed, is for test-zero, too) get an environment of their own that reads $(VENV), which stays as the tests need it.
$(MMSP)/.ready: $(VENV)/.run
	$(say) "Installing the rivals of bench-mmsp"
	@$(BIN)/python -m venv --clear --without-pip $(MMSP)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$($(MMSP)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vlm.pth
	@for rival in "deepspeed einops" yunchang ring-flash-attn megatron-core; do \
	    DS_BUILD_OPS=0 $(BIN)/python -m pip --python $(MMSP)/bin/python install $(PIP_FLAGS) $$rival \
	    || echo "$$rival cannot be installed; its rows will say so" >&2; done
	@touch $@

# make demo and make test do all set-up themselves; set-up that is done already takes no time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
# Recipe or pytest arguments: make demo ARGS="num_steps=5", make test ARGS="-k policy".
ARGS ?=
# The first of these that is 3.11 or newer makes .venv; requirements/cpu.lock was made with 3.11.
PYTHON ?= python3.11 python3.12 python3.13 python3
ifndef KIND
KIND := $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),cuda,cpu)
endif
REQUIREMENTS := requirements/$(KIND).lock
# The demo and most distributed tests are two processes: half the cores each.
ifndef OMP_NUM_THREADS
export OMP_NUM_THREADS := $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores > 1 ? cores / 2 : 1)))
endif

# make demo and make paper start two processes; with GPUs each has one of its own, of those that this shell may use.
ifndef NUM_PROCESSES
NUM_PROCESSES := 2
ifeq ($(KIND),cuda)
NUM_PROCESSES := $(shell gpus=$$(nvidia-smi -L 2>/dev/null | grep -c ^GPU || true); \
	if [ -n "$${CUDA_VISIBLE_DEVICES+set}" ]; then \
		gpus=$$(tr , "\n" <<< "$$CUDA_VISIBLE_DEVICES" | grep -c "^[0-9A-Z]" || true); \
	fi; \
	echo $$((gpus < 2 ? 1 : 2)))
endif
endif

.PHONY: help venv demo paper real gpu test test-jobs test-interpreter test-avx2 test-cuda test-cuda-oldest test-all asan \
	fuzz lint typing format clean

help:
	@echo "make demo    train a judge by SFT, RLVR and R-Align in miniature and compare them"
	@echo "make paper   the paper in miniature: judges, one actor for each, which metric predicts its quality (docs/paper.md)"
	@echo "make real    judges from a pretrained model on real text, on a CPU (fetches 93 MB; docs/real-text.md)"
	@echo "make gpu     first contact with one GPU, in at most 10 minutes (docs/gpu.md)"
	@echo "make test    the tests that need no GPU and no long job"
	@echo "make test-jobs   jobs of several processes that make test leaves out: further layouts, recipes, resume"
	@echo "make test-interpreter   the kernels' tests on Triton's interpreter"
	@echo "make test-avx2   the numeric tests as on a CPU without AVX-512 and AMX"
	@echo "make test-cuda   contract tests against the CUDA packages, without a GPU (.venv-cuda: 9 GB; docs/gpu.md)"
	@echo "make test-all    also the tests that take minutes: kills, resume, servers, recipes, SLURM"
	@echo "make asan    the packing planner's tests under address and undefined-behaviour sanitizers"
	@echo "make fuzz    all parsers on RALIGN_FUZZ_INPUTS=100000 hostile inputs (minutes)"
	@echo "make lint    ruff, import order (import-linter), types (pyright)"
	@echo "make format  ruff's automatic fixes and format"
	@echo "make venv    set-up only: .venv, packages ($(REQUIREMENTS)), C++ extension"
	@echo "make clean   remove build products; .venv and runs/ stay"
	@echo "Arguments: make demo ARGS=\"num_steps=5\", make test ARGS=\"-k policy\""

venv: $(VENV)/extension.stamp

# torchrun without its own log lines and traceback.
LAUNCH = $(PY) -m ralign.engine.runtime.launch --standalone --nproc-per-node $(NUM_PROCESSES)

demo: venv
	@echo "Demo: results go to runs/; make demo ARGS=--help lists all settings"
	@$(LAUNCH) recipes/r_align_mini.py $(ARGS)

paper: venv
	@$(LAUNCH) recipes/paper_in_miniature.py $(ARGS)

# The model's folder is written once; model.hf_path=FOLDER takes another one.
REAL_MODEL := runs/models/SmolLM2-135M-Instruct
real: venv
	@$(if $(filter model.hf_path=%,$(ARGS)),,$(PY) -m ralign.recipes.real.model $(REAL_MODEL))
	@$(LAUNCH) recipes/real_text.py $(ARGS)

# Exit status 2 on a machine without a GPU; --list tells the stages.
gpu: venv
	@$(PY) benchmarks/first_contact.py $(ARGS)

# Workers of pytest: each test file runs in one of them.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores > 4 ? 4 : cores)))
PYTEST = $(VENV)/bin/pytest --durations=15 -m

test: venv
	@$(PYTEST) "not gpu and not slow and not jobs" $(if $(ARGS),,-n $(WORKERS) --dist loadfile) $(ARGS)

test-jobs: venv
	@$(PYTEST) "jobs and not gpu and not slow" $(if $(ARGS),,-n $(WORKERS) --dist loadfile) $(ARGS)

# Triton's interpreter must be selected before the kernels are imported.
test-interpreter: venv
	@TRITON_INTERPRET=1 $(PYTEST) "not slow" -k triton -n $(WORKERS) tests/kernels $(ARGS)

# Results must not depend on the kind of CPU: the numeric tests once more, as on one without AVX-512 and AMX.
NUMERIC_TESTS := tests/kernels tests/engine/policy tests/engine/generator tests/engine/algorithms
test-avx2: venv
	@echo "Numeric tests on AVX2"
	@ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) "not gpu and not slow and not jobs and not compiler" $(NUMERIC_TESTS) \
		$(ARGS)

# The CUDA packages on a machine without a GPU, in an environment of their own; -oldest: the lower end of the range.
test-cuda test-cuda-oldest: test-%:
	@tests/cuda/run.sh $* $(ARGS)

# The sanitizers' libraries must be there before Python; libstdc++ too, or they miss its exceptions.
asan: venv build/asan/_packing.so
	@echo "Packing planner under sanitizers"
	@LD_PRELOAD="$$(for name in libasan.so libubsan.so libstdc++.so.6; do c++ -print-file-name=$$name; done | xargs)" \
		ASAN_OPTIONS=detect_leaks=0 $(PY) tests/programs/sanitized.py build/asan/_packing.so -q tests/engine/data/test_packing*.py

build/asan/_packing.so: $(wildcard csrc/*) | venv
	@mkdir -p $(@D)
	@c++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fvisibility=hidden -shared -fPIC \
		$$($(PY) -m pybind11 --includes) csrc/*.cpp -o $@

fuzz: venv
	@RALIGN_FUZZ_INPUTS=$${RALIGN_FUZZ_INPUTS:-100000} $(VENV)/bin/pytest tests/test_fuzz.py --timeout 14400 $(ARGS)

test-all: venv lint test-interpreter asan
	@$(PYTEST) "not gpu" --timeout 1800 $(ARGS)

lint: venv typing
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/basedpyright --pythonpath $(PY)

# A type checker reads files, not the finder of an editable installation: links give it the package ralign.
typing:
	@mkdir -p build/typing/ralign
	@for name in engine kernels recipes; do ln -sfn ../../../$$name build/typing/ralign/$$name; done

format: venv
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	rm -f .venv*/extension.stamp
	rm -rf build dist *.egg-info kernels/*.so .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

# Set-up in three steps, each with a stamp; a step that failed is tried again by the next make.

$(VENV)/python.stamp:
	@for python in $(PYTHON) ""; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.11 or newer among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	echo "Set-up 1/3: virtual environment in $(VENV) ($$($$python --version))"; \
	$$python -m venv $(VENV) || { \
		echo "$$python cannot make virtual environments: install its venv module (Debian: python3-venv)" >&2; \
		exit 1; \
	}
	@touch $@

$(VENV)/$(KIND).stamp: $(VENV)/python.stamp $(REQUIREMENTS)
	@echo "Set-up 2/3: packages of $(REQUIREMENTS) (some minutes, once)"
	@requirements/install.sh $(PY) $(KIND)
	@touch $@

$(VENV)/extension.stamp: $(VENV)/$(KIND).stamp setup.py pyproject.toml $(wildcard csrc/*)
	@echo "Set-up 3/3: C++ extension (under a minute)"
	@command -v c++ >/dev/null || { echo "No C++ compiler: install one (Debian: g++)" >&2; exit 1; }
	@header=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h; \
		test -f "$$header" || { echo "No $$header: install Python's headers (Debian: python3-dev)" >&2; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . || { \
		echo "Building the extension failed; the compiler's reason is above." >&2; exit 1; }
	@touch $@

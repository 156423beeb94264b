# `make` lists the targets. Each installs what it needs into .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt

.PHONY: real bench gpu gpu-prepare help demo test test-slow test-all test-floor common-tests faults bench-smoke docs lint types format
.PHONY: wheel-test vllm-test clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## Train and evaluate the embedded models, in about 2 minutes
	$(BIN)/semcot demo

test: $(VENV)/.installed-test ## Run the tests, slow ones excepted (about 8 minutes on two cores)
	$(BIN)/python -m pytest --durations 15 -m "not slow"

test-slow: $(VENV)/.installed-test ## Run the slow tests
	$(BIN)/python -m pytest -m slow

test-all: test test-slow ## Run all tests

test-floor: build/floor/.installed ## Run all tests with the lowest declared versions
	build/floor/.venv/bin/python -m pytest

# The tests are fetched from transformers' source distribution; they are not part of `make test`. Those of generation
# are not in it: SEMCOT_TRANSFORMERS=FOLDER takes them from a checkout of transformers.
common-tests: $(VENV)/.installed-test ## Run transformers' own common tests of models
	$(PIP) parameterized==0.9.0
	OMP_NUM_THREADS=1 $(BIN)/python tests/common/fetch_and_run.py

# The same tests as in `make test-all`, with many more cases; SEMCOT_FAULTS_LOG=FILE lists the outcome of each, and
# SEMCOT_FAULTS_RERUNS=10 runs a command again after ten of the full disks only.
faults: $(VENV)/.installed-test ## Run the tests of faults and load with all their cases
	SEMCOT_FAULTS_CALLS=2000 SEMCOT_FAULTS_FILES=200 SEMCOT_FAULTS_KILLS=20 SEMCOT_FAULTS_DISKS=1000 \
		SEMCOT_FAULTS_PROCESSES=16 SEMCOT_FAULTS_ROUNDS=5 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 0 tests/faults $(FAULTS)

# vLLM (3.5 GB) and the clients of OpenAI's API get environments of their own.
VLLM_ENV ?= build/vllm
CLIENTS_ENV ?= build/clients
vllm-test: $(VENV)/.installed-test ## Install vLLM, and run the tests of the front over it and of clients of the API
	$(BIN)/python tests/installation/vllm_environment.py $(VLLM_ENV) $(CLIENTS_ENV)
	SEMCOT_VLLM=$(abspath $(VLLM_ENV))/bin SEMCOT_CLIENTS=$(abspath $(CLIENTS_ENV))/bin/python OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 0 tests/serve/test_real_vllm.py tests/serve/test_clients.py

# The figures mean nothing after 30 steps; the report has the same form as a full run's.
bench-smoke: $(VENV)/.installed ## Run every method of the benchmark for 30 steps
	$(BIN)/semcot bench methods --task facts --methods all --seeds 0 --steps 30 --learning_rates 1e-3 \
		--train_questions 2000 --eval_questions 100 --latency_samples 10 --output_dir runs/bench-smoke

# `facts` has the demo's models, and `countdown` makes its own on first use; the graph's need a training aid, which is
# not in the package.
BENCH_TASKS ?= facts graph countdown
BENCH_BUDGETS ?= 1 4 16
bench: $(VENV)/.installed ## Run every method of the benchmark with 1, 4 and 16 times the budget, or go on with it
	$(foreach task,$(filter graph,$(BENCH_TASKS)),$(BIN)/python examples/pretrain_task_models.py --task $(task) \
		--output_dir runs/bench/models/$(task) $(BENCH_MODELS) &&) \
	$(BIN)/semcot bench methods --task $(BENCH_TASKS) --methods all --budgets $(BENCH_BUDGETS) \
		--output_dir runs/bench $(BENCH)

# The models and the data are not part of the repository; what was measured is in examples/real/.
REAL_MODELS ?= ../shared/models
REAL_DATA ?= ../shared/data
REAL_SETS ?= elements multiarith svamp commonsense_qa gsm8k coin_flip
REAL_VARIANTS ?= words plan open few_shot paper stages stages_k1
REAL_PAIRS ?= qwen2.5-coder-1.5b+qwen2.5-coder-0.5b qwen2.5-coder-1.5b+gemma-3-270m qwen2.5-coder-0.5b+gemma-3-270m
real: $(VENV)/.installed ## Train and evaluate pairs of pretrained models in REAL_MODELS on the paper's sets in REAL_DATA
	@if [ -d $(REAL_MODELS) ] && [ -d $(REAL_DATA) ]; then \
		$(BIN)/python examples/real/table.py --models $(REAL_MODELS) --data $(REAL_DATA) --output runs/real \
			--sets $(REAL_SETS) --pairs $(REAL_PAIRS) --variants $(REAL_VARIANTS); \
	else echo "Nothing is run: set REAL_MODELS to a folder of the models' folders, and REAL_DATA to one with" \
		"multiarith/, gsm8k/ and the other sets in the paper's format."; fi

# A GPU machine may reach no network: nothing is installed for `make gpu`, and what it needs is prepared elsewhere.
GPU_HOST ?= $(REAL_MODELS)/qwen2.5-coder-1.5b
GPU_GENERATOR ?= $(REAL_MODELS)/qwen2.5-coder-0.5b
GPU_DATA ?= $(REAL_DATA)/gsm8k_equations
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU ?= --steps words paper latency speed
gpu: ## Train and time a pair of pretrained models on one GPU
	$(GPU_PYTHON) examples/gpu/run.py --host $(GPU_HOST) --generator $(GPU_GENERATOR) \
		--train $(GPU_DATA)/train.txt --test $(GPU_DATA)/test.txt --output runs/gpu $(GPU)

gpu-prepare: $(VENV)/.installed ## Put into build/gpu what a GPU machine without a network needs
	$(BIN)/python examples/gpu/pieces.py split $(GPU_HOST) $(GPU_GENERATOR) $(GPU_DATA) --output build/gpu/pieces
	$(BIN)/python examples/gpu/wheels.py --output build/gpu/wheels

docs: $(VENV)/.installed-test ## Build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(VENV)/.installed-dev types ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy reads build/types, where modeling/ stands inside the package, as an installation puts it.
types: $(VENV)/.installed-dev ## Check types
	rm -rf build/types/semcot_hf
	mkdir -p build/types/semcot_hf
	ln -s $(foreach entry,$(wildcard semcot_hf/*) modeling,$(CURDIR)/$(entry)) build/types/semcot_hf/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p semcot_hf

format: $(VENV)/.installed-dev ## Format the code and apply the linter's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel-test: $(VENV)/.installed-dev ## Build sdist and wheel, and run the wheel away from the checkout
	$(BIN)/python tests/installation/wheel_check.py

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[test]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

build/floor/.installed: pyproject.toml tests/installation/lowest_versions.py | $(VENV)/.installed-test
	$(PYTHON) -m venv --clear build/floor/.venv
	$(BIN)/python tests/installation/lowest_versions.py > build/floor/constraints.txt
	build/floor/.venv/bin/python -m pip install -q -c build/floor/constraints.txt -e ".[test]"
	touch $@

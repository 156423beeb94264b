# Two commands do all the set-up on a fresh machine: `make demo` runs the main job, `make test` the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test common-tests bench-smoke lint clean

demo: $(VENV)/.installed
	$(BIN)/semcot demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# Every method of the bench for 30 steps; the figures mean nothing, the report shows what the full run gives.
bench-smoke: $(VENV)/.installed
	$(BIN)/semcot bench methods --task coin_flip --methods all --seeds 0 --steps 30 --learning_rates 1e-3 \
		--train_questions 2000 --eval_questions 100 --latency_samples 10 --output_dir runs/bench-smoke

# transformers' own common tests of models, fetched from its source distribution; not part of `make test`.
common-tests: $(VENV)/.installed-test
	$(BIN)/pip install -q -c constraints.txt parameterized==0.9.0
	OMP_NUM_THREADS=1 $(BIN)/python tests/common/fetch_and_run.py

lint: $(VENV)/.installed-test
	$(BIN)/pip install -q -c constraints.txt ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/.installed

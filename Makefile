# make demo: shards, teachers, student and their comparison on handwritten digits.
# make test: lint, types and tests, with coverage. make test-fast: the tests that take little time. make gpu: for a GPU.
# make docs: the documentation, into site/.
# make fuzz: 25,000 mutated files, some minutes; FUZZ='--seed 1 --count 1000 --only index' says which.
# All set up .venv where it is missing or out of date. PYTHON chooses the interpreter (3.10 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready

.PHONY: demo test test-fast gpu fuzz lint clean docs

demo: $(READY)
	$(BIN)/python tools/make_shards.py digits --out shards/digits_lt
	$(BIN)/accelerate launch -m cbd_fast.train --config configs/digits_lt.yaml

test: lint
	$(BIN)/pytest -n auto --cov

test-fast: $(READY)
	$(BIN)/pytest -n auto -m "not slow"

gpu: $(READY)
	$(BIN)/pytest -m gpu

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(FUZZ)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS_READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10; choose another with PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs shards/digits_lt site

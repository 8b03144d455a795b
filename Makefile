# `make bench` and `make test` set everything up by themselves; both need Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'

.PHONY: help bench test lint slow perf strength papers site clean

help:
	@echo "make bench   run the suite 'quick': a summary, a leaderboard page, an MLflow store (minutes)"
	@echo "make test    lint, types and tests (minutes)"
	@echo "make slow  [WEIGHTS=folder DATA=folder]: the tests that take longer"
	@echo "make perf  [WEIGHTS=folder DATA=folder]: timings beside other libraries'; attacks only with the folders"
	@echo "make strength  WEIGHTS=folder DATA=folder: standard beside AutoAttack (hours; goes on where it stopped)"
	@echo "make papers  WEIGHTS=folder DATA=folder: the paper recipes"
	@echo "make site    the leaderboard of results/, in site/"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "firstline needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (about 3 minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hf,privacy,dev]'
	@touch $(READY)

bench: $(READY)
	$(BIN)/firstline run quick

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -q -n 2 -m "not slow and not gpu"

slow: $(READY)
	$(if $(DATA),FIRSTLINE_DATA=$(DATA) FIRSTLINE_WEIGHTS=$(WEIGHTS)) $(BIN)/pytest -q -m slow

perf: $(READY)
	$(BIN)/python tests/perf.py results/perf.md
	@$(PEERS)
	$(BIN)/python tests/kernels.py results/kernels.md
	$(if $(DATA),@$(BIN)/python -m pip install --quiet --no-deps torchattacks adv-lib)
	$(if $(DATA),$(BIN)/python tests/peers.py --weights $(WEIGHTS) --data $(DATA))

strength: $(READY)
	@$(PEERS)
	$(BIN)/python tests/strength.py --weights $(WEIGHTS) --data $(DATA)

papers: $(READY)
	$(BIN)/firstline reproduce wong2018 --weights $(WEIGHTS)/mnist.pth --data-dir $(DATA)
	$(BIN)/firstline reproduce advertorch-adv --weights $(WEIGHTS)/mnist_lenet5_advtrained.pt --data-dir $(DATA)
	$(BIN)/firstline reproduce advertorch-clean --weights $(WEIGHTS)/mnist_lenet5_clntrained.pt --data-dir $(DATA)
	$(BIN)/firstline reproduce tf-privacy-mnist --data-dir $(DATA)

site: $(READY)
	$(BIN)/firstline leaderboard build --results results --out site

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

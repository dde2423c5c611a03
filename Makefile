# `make test` needs Python 3.10 to 3.12 and make, and sets up the rest by itself:
#   .venv         every host framework, at the versions that fairchem-core 1.10 asks for (torch 2.4)
#   .venv-latest  a recent torch and every host framework but fairchem-core
# A second run installs nothing unless pyproject.toml or requirements-latest.txt has changed.
# `make quickstart` needs the same, sets up .venv-latest alone, and writes runs/quickstart/report.html.

SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
PIP_INSTALL = python -m pip install --quiet --disable-pip-version-check

.PHONY: test check quickstart lint test-pinned test-latest check-pinned check-latest clean

# Both suites at once, a core each; every line says whose it is.
test: lint
	@$(MAKE) --no-print-directory --jobs=2 test-pinned test-latest

# Style, types, the laws of the core, and the contract of every host's adapter: minutes.
check: lint
	@$(MAKE) --no-print-directory --jobs=2 check-pinned check-latest

QUICK = runs/quickstart
KD = .venv-latest/bin/kd-plugins
SAMPLE = $(KD) sample $(QUICK)/al.extxyz --atoms 32 --potential emt --min-distance 2.1
quickstart: export OMP_NUM_THREADS = 1
quickstart: export HIPPYNN_USE_CUSTOM_KERNELS = _pytorch_raw
quickstart: export HIPPYNN_WARN_LOW_DISTANCES = False
quickstart: export PYTHONWARNINGS = ignore
quickstart: .venv-latest/.installed
	@mkdir -p $(QUICK)
	.venv-latest/bin/ase build -x fcc -a 4.04 --cubic Al $(QUICK)/al.extxyz
	$(SAMPLE) --strain 80 --md 80 --temperatures 2500 1000 --seed 0 --out $(QUICK)/train.extxyz
	$(SAMPLE) --strain 20 --md 20 --temperatures 2500 1000 --seed 1 --out $(QUICK)/test.extxyz
	$(SAMPLE) --md 1 --temperatures 1500 --seed 2 --out $(QUICK)/liquid.extxyz
	$(KD) label $(QUICK)/train.extxyz --teacher chgnet --store $(QUICK)/targets \
	    --quantities energy forces atomic_energies --engine process --workers 2
	$(KD) compare recipes/quickstart/experiment.yml --out $(QUICK)/compare --workers 3
	$(KD) report $(QUICK)/compare -o $(QUICK)/report.html

lint: .venv/.installed
	@echo "== ruff and pyright"
	@.venv/bin/ruff check .
	@.venv/bin/pyright

test-pinned: .venv/.installed
	@echo "== tests in .venv"
	@.venv/bin/python -m pip check
	@.venv/bin/python -m pytest 2>&1 | sed -u 's/^/pinned | /'

test-latest: .venv-latest/.installed
	@echo "== tests in .venv-latest"
	@.venv-latest/bin/python -m pip check
	@.venv-latest/bin/python -m pytest 2>&1 | sed -u 's/^/latest | /'

check-pinned: .venv/.installed
	@.venv/bin/python -m pytest -m "not slow" tests/test_house.py tests/fairchem/test_contract.py \
	    2>&1 | sed -u 's/^/pinned | /'

check-latest: .venv-latest/.installed
	@.venv-latest/bin/python -m pytest -m "not slow" tests/core tests/chgnet/test_contract.py \
	    tests/hippynn/test_contract.py 2>&1 | sed -u 's/^/latest | /'

.venv/.installed: pyproject.toml
	@echo "== setting up .venv: some minutes the first time"
	@$(PYTHON) -m venv .venv
	@.venv/bin/$(PIP_INSTALL) --editable '.[all,test]'
	@touch $@

.venv-latest/.installed: pyproject.toml requirements-latest.txt
	@echo "== setting up .venv-latest: some minutes the first time"
	@$(PYTHON) -m venv .venv-latest
	@.venv-latest/bin/$(PIP_INSTALL) --editable '.[hippynn,chgnet,sevenn,ray,report,select,test]' -r requirements-latest.txt
	@touch $@

clean:
	rm -rf .venv .venv-latest .pytest_cache .ruff_cache build dist
	find src tests recipes -name __pycache__ -type d -prune -exec rm -rf {} +

# What a developer does here, one word each. Every target makes the virtual environment first when it is missing or
# older than the locked dependencies. Needs GNU make, bash and Python 3.11 or newer; `make test` also wants real peers
# (Orthanc, DCMTK, Postfix, PostgreSQL ...): as root it installs them from Debian, else it says what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
# Many tests wait for a peer or for time to pass: more of them at once than there are cores.
WORKERS ?= 3
SOAK ?= kill
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test check format bench fuzz soak docs bare pictures image lock peers clean

help:  ## Show this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

demo: .venv/run  ## Mail real images into a small PACS on this machine and show what happens
	$(BIN)/python -m gateway demo $(ARGS)

test: check peers  ## Everything that must hold: check, then all tests, then the coverage bars
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report= $(ARGS)
	$(BIN)/python -m coverage report --include='gateway/core/*' --fail-under=100
	$(BIN)/python -m coverage report --omit='gateway/core/*' --fail-under=90

check: .venv/test  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

format: .venv/test  ## Write the code the way `check` wants to read it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/test peers  ## Speed side by side with Postfix and DCMTK; prints ratios
	$(BIN)/python tests/bench $(ARGS)

fuzz: .venv/test  ## Throw damaged mail at every parser, ten minutes each or ARGS=seconds; ends at the first finding
	$(PIP) install --no-build-isolation --editable '.[fuzz]'
	for target in tests/fuzz/*.py; do \
	  echo "== $$target"; nice $(BIN)/python $$target -max_total_time=$(or $(ARGS),600) -rss_limit_mb=1024 -timeout=20; done

soak: .venv/test peers  ## Mail from ten connections while the gateway is killed again and again; SOAK=modalities on the way out, night: a PACS away, idle, backlog
	PYTHONPATH=.:tests/peers $(BIN)/python tests/fault/$(SOAK).py $(ARGS)

docs: .venv/test  ## Build the documentation as a site: build/docs/index.html
	$(BIN)/python -m sphinx -q -W -b html docs build/docs

bare: .venv/test  ## Install by the page in an empty Debian (debootstrap, root), and run the Dockerfile's steps
	$(BIN)/python tests/deploy/bare.py $(ARGS)

pictures: .venv/test peers  ## Take the documents' pictures of the console anew
	PICTURES=$(CURDIR)/docs/pictures $(BIN)/python -m pytest -q tests/e2e/test_console.py -k pictures

image:  ## Build the container image
	docker build --tag dicom-mail-gateway .

lock: .venv/test  ## Choose the newest dependencies anew and write down their hashes
	$(PIP) install uv
	echo setuptools | $(BIN)/uv pip compile $(LOCK) --extra postgresql --output-file requirements.lock pyproject.toml -
	echo setuptools | $(BIN)/uv pip compile $(LOCK) --extra postgresql --extra test --constraint requirements.lock \
	  --output-file requirements-test.lock pyproject.toml -

# With the extras, because pip 23 (Debian 12) takes a package that is locked without the extra somebody wants of it for
# another one, looks for its newest version, and refuses that one for want of a hash.
LOCK := --quiet --upgrade --generate-hashes --universal --python-version 3.11 --no-strip-extras \
  --no-emit-index-url --no-annotate --custom-compile-command 'make lock'

peers:
	@tests/peers/install

clean:  ## Remove what the other targets made
	rm -rf .venv build dist ./*.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/run: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(no_python)
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(no_ensurepip)
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --require-hashes --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/test: .venv/run requirements-test.lock
	$(PIP) install --require-hashes --requirement requirements-test.lock
	@touch $@

# Debian ships Python without its venv: root gets it installed, anybody else is told the one line to type.
no_python = { echo 'make: Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3' >&2; exit 1; }
no_ensurepip = \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv; \
  else echo 'make: Python has no venv here; type: sudo apt-get install python3-venv' >&2; exit 1; fi

